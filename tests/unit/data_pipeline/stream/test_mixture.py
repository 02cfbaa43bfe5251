"""A mixture is one endless order: each dataset by its weight, no sample lost or repeated, the past never changed."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.shards import reader
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from data_pipeline.stream.mixture import MixedDataset, MixturePlan, open_mixture
from data_pipeline.stream.mixture_segments import Component, Mixture
from tests.support.corpus import make_texts, prepare_synthetic, tokenizer_config, write_jsonl
from tests.unit.data_pipeline.shards.test_shards import write

weights = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    count = draw(st.integers(1, 6))
    components = [
        Component(f"d{number}", draw(st.integers(1, 50)), draw(st.one_of(st.none(), st.integers(1, 60))))
        for number in range(count)
    ]
    starts = sorted(draw(st.sets(st.integers(1, 80), max_size=3)))
    some = st.lists(weights, min_size=count, max_size=count).filter(any)
    return Mixture(components, [(start, draw(some)) for start in (0, *starts)])


def length_of(mixture: Mixture, most: int) -> int:
    return most if mixture.end_position is None else min(most, mixture.end_position)


@settings(max_examples=150)
@given(mixture=mixtures(), window=st.integers(1, 40))
def test_each_position_is_the_next_sample_of_one_component(mixture: Mixture, window: int) -> None:
    length = length_of(mixture, 200)
    which, index = mixture.assign(range(length))
    seen = [0] * len(mixture.components)
    for position, (item, before) in enumerate(zip(which.tolist(), index.tolist(), strict=True)):
        assert mixture.taken(position) == tuple(seen)
        assert before == seen[item]
        seen[item] += 1
    parts = [mixture.assign(range(start, min(start + window, length))) for start in range(0, length, window)]
    assert not parts or np.array_equal(np.concatenate([part[0] for part in parts]), which)
    assert not parts or np.array_equal(np.concatenate([part[1] for part in parts]), index)
    backwards = mixture.assign(list(reversed(range(length))))
    assert np.array_equal(backwards[0][::-1], which)


@settings(max_examples=100)
@given(
    shares=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=9),
    start=st.integers(0, 10**9),
    length=st.integers(1, 3000),
)
def test_any_section_holds_each_dataset_by_its_weight(shares: list[float], start: int, length: int) -> None:
    mixture = Mixture([Component(str(n), 10, None) for n in range(len(shares))], [(0, shares)])
    which, _ = mixture.assign(np.arange(start, start + length))
    levels = math.ceil(math.log2(len(shares))) if len(shares) > 1 else 0
    for item, share in enumerate(shares):
        wanted = length * share / math.fsum(shares)
        assert abs(int((which == item).sum()) - wanted) <= 2 * levels + 1e-5 * length


@settings(max_examples=100)
@given(mixture=mixtures())
def test_limits_hold_and_the_stream_ends_when_all_are_used_up(mixture: Mixture) -> None:
    taken = mixture.taken(length_of(mixture, 10_000))
    for count, ingredient in zip(taken, mixture.components, strict=True):
        assert ingredient.max_samples is None or count <= ingredient.max_samples
    if mixture.end_position is not None:
        wanted = [weights for start, weights in mixture.phases if start <= mixture.end_position][-1]
        assert all(
            count == ingredient.max_samples
            for count, ingredient, weight in zip(taken, mixture.components, wanted, strict=True)
            if weight
        )


def test_other_datasets_replace_one_that_is_used_up() -> None:
    mixture = Mixture([Component("a", 10, 20), Component("b", 10, None)], [(0, (0.5, 0.5))])
    which, _ = mixture.assign(range(200))
    assert int((which[:40] == 0).sum()) == 20 and (which[40:] == 1).all()


def test_a_later_phase_changes_nothing_before_it() -> None:
    components = [Component("a", 7, None), Component("b", 9, 40)]
    one, other = Mixture(components, [(0, (3, 1))]), Mixture(components, [(0, (3, 1)), (50, (1, 5))])
    assert all(np.array_equal(x, y) for x, y in zip(one.assign(range(50)), other.assign(range(50)), strict=True))
    assert one.before(50) == other.before(50) and one.before(51) != other.before(51)


def test_a_distant_position_is_computed_at_once() -> None:
    mixture = Mixture([Component(str(n), 10**9, None) for n in range(40)], [(0, range(1, 41))])
    started = time.thread_time()  # CPU time of this thread, because other processes may use the core
    mixture.assign(10**12 + np.arange(64))
    mixture.taken(10**12)
    assert time.thread_time() - started < 0.1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two datasets without a tokenizer; sample i of the first begins with token i, of the second with 200 + i."""
    made = {}
    for name, first, count in (("a", 0, 30), ("b", 200, 50)):
        made[name] = tmp_path_factory.mktemp("mixture") / name
        write(made[name], [first + np.arange(2 * count + 1) // 2], seq_length=2)
    return made


def mixed(folders: dict[str, Path], **plan: object) -> MixedDataset:
    settings = {"weights": {"a": 1.0, "b": 2.0}, "max_epochs": {}, "later": ()} | plan
    return open_mixture(MixturePlan(**settings), folders)  # type: ignore[arg-type]


def firsts(dataset: MixedDataset, seed: int, size: int, batches: int, position: int = 0) -> tuple[list[int], list[int]]:
    """First tokens in order, and the digest of each global batch."""
    ranks = [
        train_batches(dataset, seed=seed, global_batch_size=12, rank=rank, size=size, position=position)
        for rank in range(size)
    ]
    tokens, digests = [], []
    for _ in range(batches):
        batch = [next(rank) for rank in ranks]
        tokens += [int(row[0]) for part in batch for row in part.tokens]
        digests.append(int(torch.tensor([part.digest for part in batch]).sum()))
    for rank in ranks:
        rank.close()
    return tokens, digests


@settings(max_examples=15)
@given(
    legs=st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(1, 4)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_other_rank_counts_continue_with_the_same_batches(
    folders: dict[str, Path], legs: list[tuple[int, int]], seed: int
) -> None:
    dataset = mixed(folders, later=[(40, {"b": 1.0}), (90, {"a": 1.0, "b": 1.0})])
    total = sum(batches for _, batches in legs)
    tokens: list[int] = []
    digests: list[int] = []
    for size, batches in legs:
        more = firsts(dataset, seed, size, batches, position=12 * len(digests))
        tokens += more[0]
        digests += more[1]
    assert (tokens, digests) == firsts(dataset, seed, 1, total)


def test_each_pass_over_a_dataset_has_each_of_its_samples_once(folders: dict[str, Path]) -> None:
    tokens, _ = firsts(mixed(folders), 5, 1, 30)
    for low, count in ((0, 30), (200, 50)):
        own = [token - low for token in tokens if low <= token < low + 100]
        assert len(own) >= 2 * count
        for start in (0, count):
            assert sorted(own[start : start + count]) == list(range(count))


def test_a_datasets_order_does_not_depend_on_the_mixture(folders: dict[str, Path]) -> None:
    many, few = (firsts(mixed(folders, weights={"a": a, "b": 1.0}), 5, 1, 12)[0] for a in (3.0, 0.3))
    own = [[token for token in tokens if token < 100] for tokens in (many, few)]
    assert own[0][: len(own[1])] == own[1] and len(own[1]) > 10


def test_the_digest_covers_the_past_but_not_the_future(folders: dict[str, Path]) -> None:
    plain = mixed(folders)
    later, other = mixed(folders, later=[(200, {"a": 1.0})]), mixed(folders, weights={"a": 1.0, "b": 3.0})
    assert plain.digest_before(100) == later.digest_before(100) != other.digest_before(100)
    assert plain.digest_before(101) != later.digest_before(101)
    assert plain.digest_before(50) == mixed({"a": folders["a"], "b": folders["b"]}).digest_before(50)
    swapped = {"a": folders["b"], "b": folders["a"]}
    assert mixed(swapped).digest_before(50) != plain.digest_before(50)


def test_datasets_with_another_tokenizer_are_refused(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", make_texts(60))
    prepare_synthetic(tmp_path / "a", [texts])
    prepare_synthetic(tmp_path / "b", [texts], tokenizer=tokenizer_config(vocab_size=400))
    with pytest.raises(
        DataError, match=r"b has another tokenizer .* than .*a .*\n.*tokenizer\.path=.*a/tokenizer\.model"
    ):
        open_mixture(MixturePlan({"a": 1.0, "b": 1.0}, {}, ()), {"a": tmp_path / "a", "b": tmp_path / "b"})
    prepare_synthetic(tmp_path / "c", [texts], seq_length=32)
    with pytest.raises(DataError, match=r"c has another model\.seq_length than .*\(32, 16\)"):
        open_mixture(MixturePlan({"a": 1.0, "c": 1.0}, {}, ()), {"a": tmp_path / "a", "c": tmp_path / "c"})


@pytest.mark.parametrize("epochs", [1e-9, 0.03])
def test_a_limit_that_allows_no_sample_is_refused(folders: dict[str, Path], epochs: float) -> None:
    with pytest.raises(
        DataError, match=rf"data\.mixture_max_epochs\.a={epochs}: allows none of its 30 samples\n  hint: raise it"
    ):
        mixed(folders, max_epochs={"a": epochs})


def test_a_limit_may_exceed_what_can_be_taken(folders: dict[str, Path]) -> None:
    assert mixed(folders, max_epochs={"a": 1e308, "b": 0.02}).end_position is None


def test_of_phases_with_equal_start_the_last_counts(folders: dict[str, Path]) -> None:
    dataset = mixed(folders, later=[(39, {"b": 1.0}), (40, {"a": 1.0})])  # samples of 2 tokens
    assert dataset.mixture.phases[1:] == ((20, [1.0, 0.0]),)


def test_a_missing_dataset_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: not prepared"):
        open_mixture(MixturePlan({"a": 1.0, "b": 1.0}, {}, ()), folders | {"b": tmp_path / "nowhere"})


def test_a_mixture_does_not_depend_on_the_mapping_limit(folders, monkeypatch) -> None:
    def tokens() -> np.ndarray:
        mixed = open_mixture(MixturePlan({"a": 0.5, "b": 0.5}, {}, ()), folders)
        return mixed.locate(mixed.sample_indices(range(200), 3)).tokens()

    expected = tokens()
    for limit in (1, 3):
        monkeypatch.setattr(reader, "MAX_MAPPED_SHARDS", limit)
        assert np.array_equal(tokens(), expected)


def test_a_mixture_of_one_equals_the_dataset(folders: dict[str, Path]) -> None:
    dataset = PackedDataset.open(folders["a"], "train")
    alone = open_mixture(MixturePlan({"a": 1.0}, {}, ()), {"a": folders["a"]})
    numbers = alone.sample_indices(range(60), 3)
    assert sorted(numbers[:30]) == list(range(30)) and np.array_equal(
        alone.locate(numbers).tokens(), dataset.read(numbers)
    )


def test_a_stream_with_an_end_gives_all_batches_then_fails(folders: dict[str, Path]) -> None:
    dataset = mixed(folders, max_epochs={"a": 2.0, "b": 1.0})
    assert dataset.end_position == 110
    stream = train_batches(dataset, seed=3, global_batch_size=12, rank=0, size=1, position=0)
    assert [next(stream).position for _ in range(9)] == list(range(0, 108, 12))
    with pytest.raises(DataError, match="used up after 108 samples"):
        next(stream)

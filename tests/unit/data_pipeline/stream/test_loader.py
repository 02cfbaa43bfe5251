import itertools
import threading
import time
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import prefetch
from data_pipeline.errors import DataError
from data_pipeline.permutation import shuffled_indices
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream import loader
from data_pipeline.stream.loader import evaluation_batches, train_batches
from tests.unit.data_pipeline.shards.test_shards import write

SIZES = [1, 2, 3, 4, 6, 12]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Datasets by number of samples; sample i begins with token i."""
    made = {}

    def get(num_samples):
        if num_samples not in made:
            folder = tmp_path_factory.mktemp(f"set{num_samples}")
            write(folder, [np.arange(2 * num_samples + 1) // 2], seq_length=2)
            made[num_samples] = PackedDataset.open(folder, "train")
            assert made[num_samples].num_samples == num_samples
        return made[num_samples]

    return get


def take(dataset, num_batches, *, seed=1, batch=12, size=1, position=0):
    """`num_batches` global batches as a list of each rank's batches."""
    ranks = [
        train_batches(dataset, seed=seed, global_batch_size=batch, rank=rank, size=size, position=position)
        for rank in range(size)
    ]
    batches = [[next(stream) for stream in ranks] for _ in range(num_batches)]
    for stream in ranks:
        stream.close()
    return batches


def samples(global_batch):
    return [int(row[0]) for batch in global_batch for row in batch.tokens]


def wrapped_sum(values):
    return int(torch.tensor(values, dtype=torch.int64).sum())


@settings(max_examples=25, deadline=None)
@given(
    num_samples=st.sampled_from([1, 5, 24, 97]),
    legs=st.lists(st.tuples(st.sampled_from(SIZES), st.integers(1, 5)), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_any_stops_and_rank_counts_give_one_order(datasets, num_samples, legs, seed):
    dataset = datasets(num_samples)
    position, seen, digests = 0, [], []
    for size, num_batches in legs:
        for global_batch in take(dataset, num_batches, seed=seed, size=size, position=position):
            assert all(batch.position == position for batch in global_batch)
            assert all(batch.epoch == position // num_samples for batch in global_batch)
            seen += samples(global_batch)
            digests.append(wrapped_sum([batch.digest for batch in global_batch]))
            (position,) = {batch.next_position for batch in global_batch}
    assert seen == shuffled_indices(np.arange(position), num_samples, seed).tolist()
    for start in range(0, position - num_samples + 1, num_samples):
        assert sorted(seen[start : start + num_samples]) == list(range(num_samples))
    uninterrupted = take(dataset, len(digests), seed=seed)
    assert digests == [batch.digest for (batch,) in uninterrupted]


@settings(max_examples=25)
@given(
    max_batches=st.integers(1, 40),
    window_bytes=st.integers(1, 2000),
    order_samples=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    position=st.integers(0, 200),
)
def test_the_prefetch_depth_changes_nothing(datasets, max_batches, window_bytes, order_samples, position):
    def seen():
        batches = take(datasets(97), 30, size=2, position=position)
        return [(batch.position, batch.digest, batch.tokens.tolist()) for ranks in batches for batch in ranks]

    expected = seen()
    at_first, later = order_samples
    with mock.patch.multiple(
        loader,
        MAX_WINDOW_BATCHES=max_batches,
        WINDOW_BYTES=window_bytes,
        FIRST_ORDER_SAMPLES=at_first,
        ORDER_SAMPLES=later,
    ):
        assert seen() == expected


def test_waiting_samples_are_copied_and_stay_equal(datasets, monkeypatch):
    expected = [batch.tokens.tolist() for (batch,) in take(datasets(97), 60)]
    copied = []
    monkeypatch.setattr(prefetch, "WAIT_SECONDS", 0.001)
    monkeypatch.setattr(
        loader._Window, "materialize", lambda window: (copied.append(window), window._samples.materialize())
    )
    stream = train_batches(datasets(97), seed=1, global_batch_size=12, rank=0, size=1, position=0)
    seen = []
    for number in range(60):
        if number in (1, 5):
            limit = time.monotonic() + 60
            while len(copied) < number // 5 + 1 and time.monotonic() < limit:
                time.sleep(0.001)
        seen.append(next(stream).tokens.tolist())
    stream.close()
    assert seen == expected
    assert len(copied) == len(set(copied)) >= 2, "each once"


def test_batches_contain_the_samples_in_shuffled_order(datasets):
    dataset = datasets(97)
    for number, (batch,) in enumerate(take(dataset, 20, seed=3)):
        rows = shuffled_indices(np.arange(12 * number, 12 * number + 12), 97, 3)
        assert batch.tokens.dtype == torch.int64
        assert np.array_equal(batch.tokens.numpy(), dataset.read(rows))
        assert batch.mask is None


def test_the_digest_depends_on_tokens_and_positions(datasets):
    digests = [batch.digest for (batch,) in take(datasets(24), 10)]
    assert len(set(digests)) == 10, "equal samples at other positions are another batch"
    assert all(-(2**63) <= digest < 2**63 for digest in digests)
    assert any(digest < 0 for digest in digests)
    other = [batch.digest for (batch,) in take(datasets(24), 10, seed=2)]
    assert not set(digests) & set(other)


def test_digest_never_changes(datasets):
    """It is written into logs and compared after a resume."""
    assert [batch.digest for (batch,) in take(datasets(24), 2)] == [-2621278783966035419, -460938410437765780]


def test_closing_ends_the_thread(datasets):
    of_others = set(threading.enumerate())
    stream = train_batches(datasets(24), seed=1, global_batch_size=4, rank=0, size=1, position=0)
    next(stream)
    (thread,) = {thread for thread in threading.enumerate() if thread.name == "read-ahead"} - of_others
    stream.close()
    assert not thread.is_alive()


def test_waiting_for_a_batch_ends_when_asked_to_stop(datasets, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(loader._Window, "__init__", lambda window, *given: given[-1].wait(60))
    dataset = datasets(24)
    stream = train_batches(dataset, seed=1, global_batch_size=4, rank=0, size=1, position=0, should_stop=asked.is_set)
    began = time.monotonic()
    threading.Timer(0.3, asked.set).start()
    assert next(stream, None) is None and 0.2 < time.monotonic() - began < 30


def test_an_error_in_the_prefetch_thread_reaches_the_consumer(tmp_path):
    write(tmp_path / "set")
    dataset = PackedDataset.open(tmp_path / "set", "train")
    for shard in dataset.record.shards:
        (tmp_path / "set" / shard.file).unlink()
    with pytest.raises(DataError, match=r"train-\d+.tar: cannot be opened"):
        next(train_batches(dataset, seed=1, global_batch_size=4, rank=0, size=1, position=0))


@settings(max_examples=50, deadline=None)
@given(
    num_samples=st.sampled_from([1, 5, 24, 97]),
    batch_size=st.integers(1, 7),
    size=st.sampled_from(SIZES),
    max_samples=st.one_of(st.none(), st.integers(1, 120)),
)
def test_evaluation_sees_each_sample_once_on_any_number_of_ranks(datasets, num_samples, batch_size, size, max_samples):
    dataset = datasets(num_samples)
    ranks = [
        list(evaluation_batches(dataset, batch_size=batch_size, rank=rank, size=size, max_samples=max_samples))
        for rank in range(size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen, total = [], 0
    for global_batch in zip(*ranks, strict=True):
        assert {batch.position for batch in global_batch} == {len(seen)}
        for batch in global_batch:
            assert batch.tokens.shape == (batch_size, 3)
            seen += [int(row[0]) for row, counts in zip(batch.tokens, batch.mask, strict=True) if counts.all()]
            assert torch.equal(batch.mask.any(1), batch.mask.all(1))
            total += batch.digest
        assert {batch.next_position for batch in global_batch} == {len(seen)}
    wanted = min(num_samples, max_samples or num_samples)
    assert seen == list(range(wanted))
    alone = evaluation_batches(dataset, batch_size=1, rank=0, size=1, max_samples=max_samples)
    assert (sum(batch.digest for batch in alone) - total) % 2**64 == 0


def test_a_stream_can_begin_anywhere_at_once(datasets):
    position = 10**15 + 7
    (first,) = itertools.islice(
        train_batches(datasets(97), seed=1, global_batch_size=5, rank=0, size=1, position=position), 1
    )
    assert [int(row[0]) for row in first.tokens] == shuffled_indices(range(position, position + 5), 97, 1).tolist()

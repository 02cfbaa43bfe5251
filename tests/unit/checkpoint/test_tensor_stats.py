"""TensorStats and differences of stored tensors are those of the whole tensors, however they are cut."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.checkpoint import tensor_stats
from pretrain.checkpoint.index import read_index
from pretrain.checkpoint.tensor_stats import difference_of, read_chunk, stats_of
from pretrain.config.errors import RunError
from tests.support.checkpoints import write_checkpoint


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that tensors of a test are many."""
    monkeypatch.setattr(tensor_stats, "AT_ONCE", 5)


def tensor_of(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_stats_are_of_finite_values_and_count_the_others(tmp_path: Path, few_at_once: None) -> None:
    tensor = tensor_of((4, 7), 1)
    finite = tensor.clone()
    tensor[0, 0], tensor[3, 6], tensor[1, 2] = torch.nan, torch.inf, -torch.inf
    folder = write_checkpoint(tmp_path / "c", {"t": tensor}, {"t": [9, 10, 20]})
    kept = torch.cat([finite.view(-1)[1:9], finite.view(-1)[10:27]]).double()
    facts = stats_of(folder, read_index(folder)["t"]).facts()
    assert facts == {
        "norm": pytest.approx(float(kept.norm())),
        "min": float(kept.min()),
        "max": float(kept.max()),
        "nan": 1,
        "inf": 2,
    }


def test_without_finite_values_there_is_no_minimum(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", {"t": torch.full((3,), torch.nan, dtype=torch.bfloat16)}, {})
    facts = stats_of(folder, read_index(folder)["t"]).facts()
    assert facts == {"norm": 0, "min": None, "max": None, "nan": 3, "inf": 0}


@given(
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    cuts=st.tuples(*[st.lists(st.floats(0, 1), max_size=4)] * 2),
    changed=st.floats(0, 1),
)
@settings(max_examples=30)
def test_partitions_of_a_tensor_differ_in_changed_elements(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], cuts: tuple[list[float], ...], changed: float
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    one = tensor_of(shape, 1)
    other = one.clone()
    at = min(int(changed * one.numel()), one.numel() - 1)
    other.view(-1)[at] += 0.5
    places = [sorted({int(cut * one.numel()) for cut in each} - {0, one.numel()}) for each in cuts]
    kinds = {"a": (one, places[0]), "b": (one, places[1]), "c": (other, places[1])}
    folders = {
        name: write_checkpoint(folder / name, {"t": tensor}, {"t": cut}) for name, (tensor, cut) in kinds.items()
    }
    stored = {name: read_index(where)["t"] for name, where in folders.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_stats, "AT_ONCE", 3)
        same = difference_of(folders["a"], stored["a"], folders["b"], stored["b"])
        apart = difference_of(folders["a"], stored["a"], folders["c"], stored["c"])
    assert (same.differing, same.max_abs, same.relative) == (0, 0, 0)
    assert apart.differing == 1 and apart.max_abs == pytest.approx(0.5)
    assert apart.relative == pytest.approx(float((one - other).norm() / one.norm()))


def test_equal_is_bit_for_bit(tmp_path: Path) -> None:
    one = torch.tensor([0.0, torch.nan, 1.0, torch.inf])
    two = torch.tensor([-0.0, torch.nan, 1.0, 1.0])
    a, b = (write_checkpoint(tmp_path / name, {"t": t}, {}) for name, t in (("a", one), ("b", two)))
    apart = difference_of(a, read_index(a)["t"], b, read_index(b)["t"])
    assert apart.differing == 2 and apart.max_abs == 0  # -0, and the infinity, whose distance is NaN


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.mkdir, (Path(self.marker),)


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda marker: pickle.dumps(Hostile(marker)), "do not hold a tensor"),
        (lambda marker: saved(Hostile(marker)), "do not hold a tensor"),
        (lambda marker: b"noise" * 100, "do not hold a tensor"),
        (lambda marker: saved({"a": torch.ones(3)}), "do not hold a float32 tensor of shape"),
        (lambda marker: saved(torch.ones(4)), "do not hold a float32 tensor of shape"),
        (lambda marker: saved(torch.ones(3, dtype=torch.float64)), "do not hold a float32 tensor of shape"),
    ],
)
def test_bytes_that_are_not_a_tensor_are_never_executed(tmp_path: Path, content, words: str) -> None:
    folder = write_checkpoint(tmp_path / "c", {"t": torch.ones(3)}, {})
    stored = read_index(folder)["t"]
    marker = tmp_path / "executed"
    (folder / "__0_0.distcp").write_bytes(content(str(marker)))
    (chunk,) = stored.chunks
    object.__setattr__(chunk, "bytes", (folder / "__0_0.distcp").stat().st_size)
    with pytest.raises(RunError, match=words) as caught:
        read_chunk(folder, stored, chunk)
    assert "__0_0.distcp: bytes 0 to" in str(caught.value) and "(t at [0])" in str(caught.value)
    assert not marker.exists()

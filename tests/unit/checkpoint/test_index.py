"""Chunks tile every tensor exactly, within the files; every fault names its tensor."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.checkpoint.index import StoredChunk, StoredTensor, index_faults, read_index
from pretrain.checkpoint.inventory import look_at, sizes_in
from pretrain.checkpoint.tensors import boxes_of_range
from pretrain.config.errors import RunError
from tests.golden.make_checkpoint import CHECKPOINT
from tests.support.checkpoints import change_json, make_run

WEIGHT = "weight/embedding.word_embeddings.weight"


@st.composite
def cut_tensors(draw: st.DrawFn) -> StoredTensor:
    """A tensor cut in flat ranges, each in boxes, each in bytes of its own."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    numel = math.prod(shape)
    ends = sorted({0, numel, *draw(st.lists(st.integers(0, numel), max_size=4))})
    boxes = [box for first, last in itertools.pairwise(ends) for box in boxes_of_range(shape, first, last - first)]
    chunks = [StoredChunk(box.offsets, box.sizes, "file", 10 * i, 10) for i, box in enumerate(boxes)]
    return StoredTensor("t", shape, "float32", tuple(draw(st.permutations(chunks))))


def faults(tensor: StoredTensor, size: int = 10**6) -> list[str]:
    return list(index_faults(Path("c"), {tensor.name: tensor}, {"file": size}))


@settings(max_examples=40)
@given(cut_tensors())
def test_flat_ranges_cover_a_tensor_exactly(tensor: StoredTensor) -> None:
    assert not faults(tensor)


@settings(max_examples=40)
@given(cut_tensors(), st.data())
def test_a_chunk_less_or_twice_or_moved_is_found(tensor: StoredTensor, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(tensor.chunks) - 1))
    chunk = tensor.chunks[number]
    others = (*tensor.chunks[:number], *tensor.chunks[number + 1 :])
    (lost,) = faults(dataclasses.replace(tensor, chunks=others))
    assert f"t: {chunk.numel:,} of {math.prod(tensor.shape):,} elements are in no chunk" in lost
    twice = dataclasses.replace(chunk, begin=10**5)
    (fault,) = faults(dataclasses.replace(tensor, chunks=(*tensor.chunks, twice)))
    assert f"t: the chunks at {list(chunk.offsets)} and {list(chunk.offsets)} overlap" in fault
    if tensor.shape:
        moved = dataclasses.replace(chunk, offsets=(chunk.offsets[0] + 1, *chunk.offsets[1:]))
        assert faults(dataclasses.replace(tensor, chunks=(*others, moved)))


def test_bytes_outside_a_file_or_of_two_chunks_are_found() -> None:
    first = StoredChunk((0,), (2,), "file", 0, 10)
    second = StoredChunk((2,), (2,), "file", 10, 10)
    tensor = StoredTensor("t", (4,), "float32", (first, second))
    assert faults(tensor, 19) == ["c/tensors.json: t: ends at byte 20 of file, which has 19"]
    meeting = dataclasses.replace(tensor, chunks=(first, dataclasses.replace(second, begin=9)))
    assert faults(meeting) == ["c/tensors.json: t: begins at byte 9 of file, before the end of t"]
    elsewhere = dataclasses.replace(tensor, chunks=(first, dataclasses.replace(second, file="../other")))
    assert faults(elsewhere) == ["c/tensors.json: t: is in ../other, which the manifest does not name"]


def test_the_index_of_a_real_save_has_no_fault() -> None:
    assert not list(index_faults(CHECKPOINT, read_index(CHECKPOINT), sizes_in(look_at(CHECKPOINT))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.update(t=[]), "damaged"),
        (lambda index: index[WEIGHT].pop("shape"), "damaged: 'shape'"),
        (lambda index: index[WEIGHT].update(shape=[91, "9"]), "are not sizes"),
        (lambda index: index[WEIGHT].update(shape=[91]), "has a chunk of another number of dimensions"),
        (lambda index: index[WEIGHT]["chunks"][0].update(begin=-1), "are not sizes"),
        (lambda index: index[WEIGHT]["chunks"][0].update(file=1), "has a dtype or file that is not a string"),
    ],
)
def test_an_index_of_another_form_is_damaged(tmp_path: Path, change, words: str) -> None:
    folder = make_run(tmp_path, 1) / "checkpoints" / "step-00000001"
    change_json(folder / "tensors.json", change)
    with pytest.raises(RunError, match=words) as caught:
        read_index(folder)
    assert str(caught.value).startswith(str(folder / "tensors.json"))

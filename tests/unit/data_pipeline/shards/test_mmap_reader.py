"""Samples are views of their shards until they are copied, and the same afterwards."""

import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.shards.mmap_reader import Samples, map_file, start_of

WIDTH = 5


@pytest.fixture
def memories() -> list[np.ndarray]:
    return [np.arange(100 * number, 100 * number + 60, dtype=np.uint16) for number in (1, 2, 3)]


def find(memories: list[np.ndarray], places: list[tuple[int, int]]) -> Samples:
    starts = np.array([start_of(memories[which]) + start for which, start in places])
    return Samples(memories, starts, WIDTH)


PLACES = [(2, 7), (0, 0), (1, 55), (0, 3), (2, 0)]


def test_samples_come_from_any_of_several_memories(memories):
    samples, expected = find(memories, PLACES), [memories[which][start : start + WIDTH] for which, start in PLACES]
    samples.page_in()
    assert samples.tokens().tolist() == np.array(expected).tolist()
    assert samples.tokens(slice(1, 3)).tolist() == np.array(expected[1:3]).tolist()


def test_materialized_samples_do_not_need_their_memories(memories):
    samples = find(memories, PLACES)
    before = samples.tokens()
    kept = [weakref.ref(memory) for memory in memories]
    samples.materialize()
    memories.clear()
    gc.collect()
    assert not any(reference() is not None for reference in kept)
    assert np.array_equal(samples.tokens(), before)
    samples.materialize()
    assert np.array_equal(samples.tokens(slice(2, 4)), before[2:4])


def test_unmaterialized_samples_keep_their_memories(memories):
    samples = find(memories, PLACES)
    kept = [weakref.ref(memory) for memory in memories]
    memories.clear()
    gc.collect()
    assert all(reference() is not None for reference in kept) and len(samples.memories) == 3


def test_joined_samples_are_in_the_given_positions(memories):
    first, second = find(memories[:1], [(0, 1), (0, 2)]), find(memories[1:], [(1, 9), (0, 8), (1, 7)])
    second.materialize()
    joined = Samples.joined([(np.array([3, 0]), first), (np.array([1, 4, 2]), second)])
    expected = [(0, 2), (2, 9), (2, 7), (0, 1), (1, 8)]
    assert np.array_equal(joined.tokens(), find(memories, expected).tokens())


def test_a_mapped_file_is_readable_after_it_is_deleted(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40)
    descriptor = os.open(path, os.O_RDONLY)
    content = map_file(descriptor, 10_000)
    os.close(descriptor)
    path.unlink()
    assert content.tobytes() == (bytes(range(256)) * 40)[:10_000]
    part = content[5000:].view(np.uint16)
    del content
    gc.collect()
    assert part[0] == 136 | 137 << 8, "an array of a part keeps all of it"
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 0


def test_a_file_that_cannot_be_mapped_is_an_error(tmp_path: Path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="No such device"):
            map_file(descriptor, 4096)
    finally:
        os.close(descriptor)

"""Shards as memory: samples that lie in any of them are gathered in one call, without the interpreter's lock.

A disk that fails, or a file that is cut while it is read, ends the process by SIGBUS, where a read would have been an
error.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class MappedShard:
    """Closed with the last reference to it."""

    memory: mmap.mmap
    tokens: Tokens
    """All of its bytes; headers too, whatever they are as tokens."""
    start: int
    """The token of the address space that its first one is."""

    @classmethod
    def of(cls, memory: mmap.mmap, dtype: np.dtype[Any]) -> "MappedShard":
        tokens: Tokens = np.frombuffer(memory, dtype, len(memory) // dtype.itemsize)
        return cls(memory, tokens, tokens.ctypes.data // dtype.itemsize)


def gather(
    shards: Sequence[MappedShard], starts: npt.NDArray[np.int64], width: int, order: npt.NDArray[np.intp]
) -> Tokens:
    """Samples [n, width] that begin at these tokens of the address space, each within one of `shards`.

    Their pages are asked for in the order of `starts`, first those with the first token of each sample, so that a disk
    reads its files one after the other; sample i goes to row `order[i]`.
    """
    first, space = _space_of(shards)
    inside = starts - first
    # `take` alone reads without the interpreter's lock where single tokens are asked for.
    step = mmap.PAGESIZE // space.itemsize
    for ahead in [*range(0, width - 1, step), width - 1]:
        space.take(inside + ahead)
    places = np.empty_like(inside)
    places[order] = inside
    rows: Tokens = np.lib.stride_tricks.sliding_window_view(space, width)[places]
    return rows


def _space_of(shards: Sequence[MappedShard]) -> tuple[int, npt.NDArray[Any]]:
    """From the first token of some shards to the last, as one row, and where it starts in the address space.

    What lies between two shards may not be touched.
    """
    start = min(shard.start for shard in shards)
    length = max(shard.start + len(shard.tokens) for shard in shards) - start
    dtype: np.dtype[Any] = shards[0].tokens.dtype
    address, is_read_only = start * dtype.itemsize, True
    return start, np.asarray(_Memory(dtype.str, length, (address, is_read_only)), dtype=dtype)


class _Memory:
    """What numpy makes an array of. The array refers to this, so that this may not refer to the array."""

    def __init__(self, typestr: str, length: int, data: tuple[int, bool]) -> None:
        self.__array_interface__ = {"version": 3, "shape": (length,), "typestr": typestr, "data": data}

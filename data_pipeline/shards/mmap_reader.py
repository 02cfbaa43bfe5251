"""Samples as views of memory: of memory-mapped shards, or of arrays.

If the disk fails or a file is truncated while it is mapped, the process ends with SIGBUS, where a read would raise an
error.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_LIBRARY.mmap.restype = ctypes.c_void_p
_LIBRARY.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_LIBRARY.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def map_file(descriptor: int, num_bytes: int) -> npt.NDArray[np.uint8]:
    """Map the first bytes of a file read-only. They are unmapped with the last array that uses them. Raises OSError.

    Python's own mmap keeps a file descriptor open for each file (before 3.13, `trackfd`), and a large dataset has more
    shards than a process may have descriptors.
    """
    address = _LIBRARY.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    content: npt.NDArray[np.uint8] = np.asarray(_Mapping("|u1", num_bytes, address))
    return content


class Samples:
    """Samples [n, width] that begin at the addresses `starts`, counted in tokens. Each is within one of `memories`.

    Nothing is copied until tokens are asked for.
    """

    def __init__(self, memories: Sequence[Tokens], starts: npt.NDArray[np.int64], width: int) -> None:
        self._located = _locate(memories, starts, width)

    @classmethod
    def joined(cls, parts: Sequence[tuple[npt.NDArray[np.intp], "Samples"]]) -> "Samples":
        """Join several Samples; each comes with the positions of its samples in the result."""
        memories = [memory for _, part in parts for memory in part.memories]
        starts = np.empty(sum(len(places) for places, _ in parts), dtype=np.int64)
        for places, part in parts:
            starts[places] = part._located.starts
        return cls(memories, starts, parts[0][1]._located.rows.shape[1])

    @property
    def memories(self) -> tuple[Tokens, ...]:
        """The arrays that must stay alive for these samples."""
        return self._located.memories

    def page_in(self) -> None:
        """Read the pages of all samples from disk, in the order of `starts`.

        If the samples are in file order, the disk reads each file from beginning to end.
        """
        _, _, space, rows, inside = self._located
        # Only `take` of single tokens reads without holding Python's lock.
        width, step = rows.shape[1], mmap.PAGESIZE // space.itemsize
        for ahead in [*range(0, width - 1, step), width - 1]:
            space.take(inside + ahead)

    def tokens(self, which: slice = slice(None)) -> Tokens:
        """A copy of these samples' tokens."""
        located = self._located  # once: another thread may materialize them meanwhile
        rows: Tokens = located.rows[located.inside[which]]
        return rows

    def materialize(self) -> None:
        """Copy the samples, so that they no longer depend on the files or the page cache."""
        tokens = self.tokens()
        starts = start_of(tokens) + tokens.shape[1] * np.arange(len(tokens))
        self._located = _locate([tokens.ravel()], starts, tokens.shape[1])


def start_of(tokens: Tokens) -> int:
    """The address of the array's first token, counted in tokens."""
    return tokens.ctypes.data // tokens.itemsize


class _Located(NamedTuple):
    memories: tuple[Tokens, ...]
    starts: npt.NDArray[np.int64]
    space: Tokens
    """The address space from the first token of all samples to the last. Memory between two shards must not be
    touched."""
    rows: Tokens
    """A sliding window of `width` tokens over it."""
    inside: npt.NDArray[np.int64]
    """Index of each sample's window."""


def _locate(memories: Sequence[Tokens], starts: npt.NDArray[np.int64], width: int) -> _Located:
    first, dtype = int(starts.min()), memories[0].dtype
    length = int(starts.max()) + width - first
    space: Any = np.asarray(_Memory(dtype.str, length, first * dtype.itemsize))
    rows = np.lib.stride_tricks.sliding_window_view(space, width)
    return _Located(tuple(memories), starts, space, rows, starts - first)


class _Memory:
    """Exposes memory to numpy. The array refers to this object, so this object must not refer to the array."""

    def __init__(self, typestr: str, length: int, address: int) -> None:
        self.length, self.address, is_read_only = length, address, True
        self.__array_interface__ = {
            "version": 3,
            "shape": (length,),
            "typestr": typestr,
            "data": (address, is_read_only),
        }


class _Mapping(_Memory):
    def __del__(self, munmap: Any = _LIBRARY.munmap) -> None:  # bound here: modules are cleared first at exit
        munmap(self.address, self.length)

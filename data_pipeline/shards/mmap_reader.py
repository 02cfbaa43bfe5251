"""Samples where they lie in memory: in shards that are mapped, or in arrays.

A disk that fails, or a file that is cut while it is read, ends the process by SIGBUS, where a read would have been an
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
    """The first bytes of a file, to be read only, unmapped with the last array of them; OSError where that fails.

    Python's own mmap keeps a descriptor for each file (before 3.13, `trackfd`): a process may have fewer of those than
    a large dataset has shards.
    """
    address = _LIBRARY.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    content: npt.NDArray[np.uint8] = np.asarray(_Mapping("|u1", num_bytes, address))
    return content


class Samples:
    """Samples [n, width] that begin at `starts`, tokens of the address space, each within one of the rows `memories`.

    Nothing is copied until they are asked for.
    """

    def __init__(self, memories: Sequence[Tokens], starts: npt.NDArray[np.int64], width: int) -> None:
        self._located = _locate(memories, starts, width)

    @classmethod
    def joined(cls, parts: Sequence[tuple[npt.NDArray[np.intp], "Samples"]]) -> "Samples":
        """Those of several, each with the places that its samples take."""
        memories = [memory for _, part in parts for memory in part.memories]
        starts = np.empty(sum(len(places) for places, _ in parts), dtype=np.int64)
        for places, part in parts:
            starts[places] = part._located.starts
        return cls(memories, starts, parts[0][1]._located.rows.shape[1])

    @property
    def memories(self) -> tuple[Tokens, ...]:
        """What has to stay for them."""
        return self._located.memories

    def page_in(self) -> None:
        """Have their pages read by now, in the order of `starts`: first those with the first token of each sample.

        So a disk reads a file from its beginning to its end where they are in that order.
        """
        _, _, space, rows, inside = self._located
        # `take` alone reads without the interpreter's lock where single tokens are asked for.
        width, step = rows.shape[1], mmap.PAGESIZE // space.itemsize
        for ahead in [*range(0, width - 1, step), width - 1]:
            space.take(inside + ahead)

    def tokens(self, which: slice = slice(None)) -> Tokens:
        """A copy of these."""
        located = self._located  # once: another thread may settle them in the meantime
        rows: Tokens = located.rows[located.inside[which]]
        return rows

    def materialize(self) -> None:
        """Copy them, so that neither the files nor the cache of their pages matters any more."""
        tokens = self.tokens()
        starts = start_of(tokens) + tokens.shape[1] * np.arange(len(tokens))
        self._located = _locate([tokens.ravel()], starts, tokens.shape[1])


def start_of(tokens: Tokens) -> int:
    """The token of the address space that its first one is."""
    return tokens.ctypes.data // tokens.itemsize


class _Located(NamedTuple):
    memories: tuple[Tokens, ...]
    starts: npt.NDArray[np.int64]
    space: Tokens
    """From the first token of all samples to the last. What lies between two memories may not be touched."""
    rows: Tokens
    """Runs of `width` tokens of it, one from each token on."""
    inside: npt.NDArray[np.int64]
    """Those of the samples."""


def _locate(memories: Sequence[Tokens], starts: npt.NDArray[np.int64], width: int) -> _Located:
    first, dtype = int(starts.min()), memories[0].dtype
    length = int(starts.max()) + width - first
    space: Any = np.asarray(_Memory(dtype.str, length, first * dtype.itemsize))
    rows = np.lib.stride_tricks.sliding_window_view(space, width)
    return _Located(tuple(memories), starts, space, rows, starts - first)


class _Memory:
    """What numpy makes an array of. The array refers to this, so that this may not refer to the array."""

    def __init__(self, typestr: str, length: int, address: int) -> None:
        self.length, self.address, is_read_only = length, address, True
        self.__array_interface__ = {
            "version": 3,
            "shape": (length,),
            "typestr": typestr,
            "data": (address, is_read_only),
        }


class _Mapping(_Memory):
    def __del__(self, munmap: Any = _LIBRARY.munmap) -> None:  # bound here: at the process's end modules go first
        munmap(self.address, self.length)

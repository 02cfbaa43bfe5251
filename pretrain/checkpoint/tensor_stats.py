"""Statistics of the stored tensors of one checkpoint, and the differences between two, one chunk at a time."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.index import StoredChunk, StoredTensor
from pretrain.checkpoint.manifest import unreadable
from pretrain.config.errors import RunError

AT_ONCE = 1 << 18
"""Elements converted to fp64 at once: statistics need little memory besides the chunk."""


@dataclass
class TensorStats:
    """The statistics of one tensor; norm, least and greatest are of its finite values."""

    squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    nans: int = 0
    infinities: int = 0

    @property
    def norm(self) -> float:
        return math.sqrt(self.squares)

    def facts(self) -> dict[str, float | int | None]:
        """The columns of a table; min and max are None if no value is finite."""
        ends = (self.least, self.greatest) if self.least <= self.greatest else (None, None)
        return {"norm": self.norm, "min": ends[0], "max": ends[1], "nan": self.nans, "inf": self.infinities}

    def add_all(self, values: Tensor) -> None:
        for piece in values.view(-1).split(AT_ONCE):
            self.add(piece.double())

    def add(self, values: Tensor) -> None:
        finite = values[values.isfinite()]
        if finite.numel():
            self.squares += float(finite.square().sum())
            self.least = min(self.least, float(finite.min()))
            self.greatest = max(self.greatest, float(finite.max()))
        nans = int(values.isnan().sum())
        self.nans += nans
        self.infinities += values.numel() - finite.numel() - nans


@dataclass
class Difference:
    """The difference of a tensor in two checkpoints; its size counts only elements that are finite in both."""

    differing: int = 0
    """Elements whose bits differ."""
    max_abs: float = 0.0
    squares: float = 0.0
    reference_squares: float = 0.0

    @property
    def relative(self) -> float:
        """L2 norm of the difference relative to the first; infinite if the first is zero."""
        if not self.squares:
            return 0.0
        return math.sqrt(self.squares / self.reference_squares) if self.reference_squares else math.inf

    def add_all(self, one: Tensor, other: Tensor) -> None:
        for piece, facing in _pieces(one, other):
            self.add(piece, facing)

    def add(self, one: Tensor, other: Tensor) -> None:
        if one.dtype == other.dtype:
            self.differing += int((_bits(one) != _bits(other)).sum())
        else:
            self.differing += int((one.double() != other.double()).sum())
        one, other = one.double(), other.double()
        both = one.isfinite() & other.isfinite()
        one, other = one[both], other[both]
        if one.numel():
            apart = one - other
            self.max_abs = max(self.max_abs, float(apart.abs().max()))
            self.squares += float(apart.square().sum())
            self.reference_squares += float(one.square().sum())


def stats_of(folder: Path, tensor: StoredTensor) -> TensorStats:
    stats = TensorStats()
    for chunk in tensor.chunks:
        stats.add_all(read_chunk(folder, tensor, chunk))  # no name keeps it: it is freed before the next is read
    return stats


def difference_of(one_folder: Path, one: StoredTensor, other_folder: Path, other: StoredTensor) -> Difference:
    """The difference of two tensors of one shape, however each is partitioned: one chunk of each is in memory."""
    found = Difference()
    held: tuple[StoredChunk, Tensor] | None = None
    for chunk in one.chunks:
        mine = read_chunk(one_folder, one, chunk)
        for facing in other.chunks:
            first = tuple(map(max, zip(chunk.offsets, facing.offsets, strict=True)))
            last = tuple(map(min, zip(chunk.ends, facing.ends, strict=True)))
            if any(begin >= end for begin, end in zip(first, last, strict=True)):
                continue
            if held is None or held[0] is not facing:
                held = None  # freed before the next is read
                held = facing, read_chunk(other_folder, other, facing)
            found.add_all(mine[_within(first, last, chunk)], held[1][_within(first, last, facing)])
        del mine  # before the next is read
    return found


def read_chunk(folder: Path, tensor: StoredTensor, chunk: StoredChunk) -> Tensor:
    """The values of one chunk; nothing in the file is executed. Raises RunError if it holds something else."""
    path = folder / chunk.file
    where = f"{path}: bytes {chunk.begin} to {chunk.begin + chunk.bytes} ({tensor.name} at {list(chunk.offsets)})"
    try:
        with path.open("rb") as file:
            part = io.BufferedReader(_Part(file, chunk.begin, chunk.bytes))
            values = torch.load(part, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from None
    except Exception as error:  # torch raises unrelated errors for bytes that are not a tensor
        raise RunError(f"{where} do not hold a tensor: {_first_sentence(error)}") from None
    plain = isinstance(values, Tensor) and values.layout == torch.strided
    if not plain or (tuple(values.shape), str(values.dtype)) != (chunk.sizes, f"torch.{tensor.dtype}"):
        raise RunError(f"{where} do not hold a {tensor.dtype} tensor of shape {list(chunk.sizes)}")
    return values


def _pieces(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of equal parts of two boxes of one shape, small enough to be copied."""
    if one.numel() <= AT_ONCE or one.dim() == 0:
        yield one.reshape(-1), other.reshape(-1)
    elif one.is_contiguous() and other.is_contiguous():
        yield from zip(one.view(-1).split(AT_ONCE), other.view(-1).split(AT_ONCE), strict=True)
    else:
        rows = max(1, AT_ONCE // (one.numel() // one.shape[0]))
        for a, b in zip(one.split(rows), other.split(rows), strict=True):
            yield from _pieces(a.squeeze(0) if rows == 1 else a, b.squeeze(0) if rows == 1 else b)


def _within(first: tuple[int, ...], last: tuple[int, ...], chunk: StoredChunk) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(first, last, chunk.offsets, strict=True))


def _bits(values: Tensor) -> Tensor:
    """The values as integers, so that NaN equals itself and 0 differs from -0."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return values.contiguous().view(width)


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0][:200] or type(error).__name__


class _Part(io.RawIOBase):
    """Bytes `begin` to `begin + length` of a file, as a file: torch reads the tensor out of it without a copy."""

    def __init__(self, file: io.BufferedReader, begin: int, length: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._begin + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._length - self._at)])
        self._at += count
        return count

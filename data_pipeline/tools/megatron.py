"""Megatron-LM's indexed datasets: tokens in PREFIX.bin, and the offsets of sequences and documents in PREFIX.idx.

The index holds: nine bytes of magic, version, code of the number type, number of sequences, length of the document
list; then the sizes of the sequences (int32), their byte offsets (int64), and the number of each document's first
sequence, followed by the number of sequences (int64). All values are little-endian.
"""

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
FLOATS = {6: "float64", 7: "float32"}
MAX_SEQUENCE = (1 << 31) - 1
Tokens = npt.NDArray[np.integer[Any]]


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """The two files. Either of their names, or their common prefix, may be given."""
    if not prefix.name:
        raise DataError(
            f"{prefix}: is not a file prefix", "give the common part of the .bin and .idx names, as in data/corpus"
        )
    name = prefix.name.removesuffix(".bin").removesuffix(".idx")
    return prefix.with_name(f"{name}.bin"), prefix.with_name(f"{name}.idx")


class IndexedDataset:
    """Memory-mapped documents. Raises DataError unless the index matches the tokens exactly."""

    def __init__(self, prefix: Path) -> None:
        self.bin_path, self.idx_path = paths_of(prefix)
        try:
            self.num_bytes = self.bin_path.stat().st_size
            with self.idx_path.open("rb") as file:
                head, idx_bytes = file.read(HEADER.size), self.idx_path.stat().st_size
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
        self.dtype, num_sequences, num_bounds = self._read_header(head, idx_bytes)
        index = np.memmap(self.idx_path, mode="r")
        self._sizes = np.frombuffer(index, "<i4", num_sequences, HEADER.size)
        self._starts = np.frombuffer(index, "<i8", num_sequences, HEADER.size + 4 * num_sequences)
        self._bounds = np.frombuffer(index, "<i8", num_bounds, HEADER.size + 12 * num_sequences)
        self._check()
        self.num_documents = len(self._bounds) - 1
        self.num_tokens = self.num_bytes // self.dtype.itemsize
        self._content = np.memmap(self.bin_path, mode="r")

    def __iter__(self) -> Iterator[Tokens]:
        """The tokens of each document, with its sequences joined."""
        for first, last in itertools.pairwise(self._bounds):
            pieces = [self._sequence(number) for number in range(int(first), int(last))]
            yield pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])

    def _sequence(self, number: int) -> Tokens:
        return np.frombuffer(self._content, self.dtype, int(self._sizes[number]), int(self._starts[number]))

    def _read_header(self, head: bytes, idx_bytes: int) -> tuple[np.dtype[Any], int, int]:
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise DataError(f"{self.idx_path}: is not a Megatron-LM index: it begins with other bytes")
        _, version, code, num_sequences, num_bounds = HEADER.unpack(head)
        if version != VERSION:
            raise DataError(f"{self.idx_path}: has format version {version}, but this program reads {VERSION}")
        if code not in TYPES:
            kind = FLOATS.get(code, f"of unknown type {code}")
            raise DataError(f"{self.idx_path}: its tokens are {kind}, but must be integers")
        expected = HEADER.size + 12 * num_sequences + 8 * num_bounds
        if idx_bytes == expected + num_sequences and num_sequences:
            raise DataError(
                f"{self.idx_path}: has modes, so the dataset holds more than text; only text can be converted"
            )
        if idx_bytes != expected:
            raise DataError(
                f"{self.idx_path}: has {idx_bytes} bytes, but its header says {expected}; it is truncated or damaged"
            )
        return np.dtype(TYPES[code]), num_sequences, num_bounds

    def _check(self) -> None:
        sizes, starts, bounds = self._sizes.astype(np.int64), self._starts, self._bounds
        ordered = len(bounds) > 0 and bounds[0] == 0 and bounds[-1] == len(sizes) and bool((np.diff(bounds) >= 0).all())
        if not ordered:
            raise DataError(
                f"{self.idx_path}: its documents do not partition its {len(sizes)} sequences; it is damaged"
            )
        if (sizes < 0).any() or (starts < 0).any():
            raise DataError(f"{self.idx_path}: has a negative size or offset; it is damaged")
        room = (self.num_bytes - starts) // self.dtype.itemsize  # written without a sum that could overflow
        beyond = np.flatnonzero(sizes > room)
        if len(beyond):
            number = int(beyond[0])
            raise DataError(
                f"{self.bin_path}: has {self.num_bytes} bytes, but {self.idx_path.name} has sequence {number} of "
                f"{sizes[number]} tokens at byte {starts[number]}; it is truncated, or the two files do not belong "
                "together"
            )
        used = int(sizes.sum()) * self.dtype.itemsize
        if used != self.num_bytes:
            raise DataError(
                f"{self.bin_path}: has {self.num_bytes} bytes, but {self.idx_path.name} describes {used}; the two "
                "files do not belong together"
            )
        if not used:
            raise DataError(f"{self.bin_path}: contains no tokens")


class IndexedWriter:
    """Writes a pair of .bin and .idx files, each document as one sequence."""

    def __init__(self, prefix: Path, dtype: str) -> None:
        self._bin_path, self._idx_path = paths_of(prefix)
        self._code = next(code for code, name in TYPES.items() if name == dtype)
        self._dtype = np.dtype(dtype)
        self._file = self._bin_path.open("wb")
        self._ends: list[npt.NDArray[np.int64]] = []
        self.num_tokens = 0

    def add(self, tokens: Tokens, ends: npt.NDArray[np.int64]) -> None:
        """Append tokens. A document ends before each index in `ends`; len(tokens) is the last possible one."""
        self._file.write(tokens.astype(self._dtype).tobytes())
        self._ends.append(self.num_tokens + ends)
        self.num_tokens += len(tokens)

    def close(self) -> int:
        """Write the index and return the number of documents. Tokens after the last end are one more document."""
        _sync_and_close(self._file)
        ends = np.concatenate([np.zeros(1, np.int64), *self._ends])
        if ends[-1] != self.num_tokens:
            ends = np.append(ends, self.num_tokens)
        sizes = np.diff(ends)
        if len(sizes) and sizes.max() > MAX_SEQUENCE:
            raise DataError(
                f"{self._bin_path.name}: has a document of {sizes.max()} tokens, more than the format allows"
            )
        with self._idx_path.open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, self._code, len(sizes), len(sizes) + 1))
            file.write(sizes.astype("<i4").tobytes())
            file.write((ends[:-1] * self._dtype.itemsize).astype("<i8").tobytes())
            file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
            _sync_and_close(file)
        return len(sizes)

    def abort(self) -> None:
        """Close the file without finishing it."""
        self._file.close()


def _sync_and_close(file: Any) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())

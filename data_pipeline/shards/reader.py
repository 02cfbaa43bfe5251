"""Samples of a prepared dataset by their number, read straight out of the shards through the saved offsets."""

import collections
import hashlib
import os
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.order import Positions, sample_at
from data_pipeline.shards.layout import DTYPES, NPY_HEADER_BYTES, npy_header
from data_pipeline.shards.manifest import FileRecord, Manifest, SplitRecord

MAX_OPEN_FILES = 64
Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class PackedDataset:
    """One split of a prepared dataset; safe to use from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, offsets: npt.NDArray[np.int64]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.split = split
        self.record: SplitRecord = manifest.splits[split]
        self.seq_length = manifest.seq_length
        self.num_samples = self.record.num_samples
        self.end: int | None = None
        """Position at which the stream of it ends: nowhere."""
        self.dtype = np.dtype(DTYPES[manifest.dtype])
        self._offsets = offsets
        # Samples before each shard, and after the last one.
        self._shard_starts = np.cumsum([0, *(shard.samples for shard in self.record.shards)], dtype=np.int64)
        self._checked_members = bytearray(len(offsets))
        self._open_files: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, split: Literal["train", "validation"]) -> "PackedDataset":
        """Open a split; a missing or truncated file is a DataError that names it. Contents: see `verify`."""
        manifest = Manifest.load(path)
        check_sizes(path, manifest.splits[split])
        return cls(path, manifest, split, _load_offsets(path, manifest, split))

    @property
    def described(self) -> str:
        """For messages."""
        return str(self.folder)

    @property
    def is_padded(self) -> bool:
        """Whether targets may be padding, which no loss counts."""
        return self.manifest.packing == "best_fit"

    @property
    def num_train_tokens(self) -> int:
        return self.record.num_tokens

    def samples_at(self, positions: Positions, seed: int) -> npt.NDArray[np.int64]:
        """Numbers of the samples at these positions of the endless shuffled order."""
        return sample_at(positions, self.num_samples, seed)

    def epoch_at(self, position: int) -> int:
        """Whole passes over the dataset before this position."""
        return position // self.num_samples

    def digest_before(self, position: int) -> str:
        """Names all that decides, with the seed, the samples before a position."""
        return self.manifest.digest

    def read(self, indices: npt.NDArray[np.int64]) -> Tokens:
        """Tokens [n, seq_length + 1] of these samples, in the order asked for (cheapest when sorted)."""
        width = self.seq_length + 1
        tokens = np.empty((len(indices), width), dtype=self.dtype)
        if not len(indices):
            return tokens
        assert np.min(indices) >= 0 and np.max(indices) < self.num_samples, "sample number out of range"
        members, rows = np.divmod(np.asarray(indices, dtype=np.int64), self.manifest.samples_per_member)
        shards = np.searchsorted(self._shard_starts, indices, side="right") - 1
        sample_bytes = width * self.dtype.itemsize
        offsets = self._offsets[members] + NPY_HEADER_BYTES + rows * sample_bytes
        targets = memoryview(tokens.data).cast("B")
        with self._lock:
            for row, (shard, member, offset) in enumerate(
                zip(shards.tolist(), members.tolist(), offsets.tolist(), strict=True)
            ):
                descriptor = self._descriptor(shard)
                if not self._checked_members[member]:
                    self._check_member(descriptor, shard, member)
                target = targets[row * sample_bytes : (row + 1) * sample_bytes]
                if os.preadv(descriptor, [target], offset) != sample_bytes:
                    raise self._fault(shard, "ends too early")
        return tokens

    def verify(self) -> None:
        """Read every byte and compare the checksums; DataError names the first file that differs."""
        for record in self.record.files:
            with (self.folder / record.file).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                    raise DataError(
                        f"{self.folder / record.file}: its content differs from what `prepare` wrote "
                        "(sha256 does not fit); restore it, or prepare again with prepare.overwrite=true"
                    )

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        with self._lock:
            while self._open_files:
                os.close(self._open_files.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open_files.get(shard)
        if descriptor is not None:
            self._open_files.move_to_end(shard)
            return descriptor
        if len(self._open_files) >= MAX_OPEN_FILES:
            os.close(self._open_files.popitem(last=False)[1])
        try:
            descriptor = os.open(self.folder / self.record.shards[shard].file, os.O_RDONLY)
        except OSError as error:
            raise self._fault(shard, f"cannot be opened ({error.strerror})") from None
        self._open_files[shard] = descriptor
        return descriptor

    def _check_member(self, descriptor: int, shard: int, member: int) -> None:
        """The first bytes must be exactly those that the writer puts before this many samples."""
        samples = min(self.manifest.samples_per_member, self.num_samples - member * self.manifest.samples_per_member)
        expected = npy_header((samples, self.seq_length + 1), self.dtype.str)
        if os.pread(descriptor, NPY_HEADER_BYTES, int(self._offsets[member])) != expected:
            raise self._fault(shard, f"member {member} does not begin with the header that `prepare` wrote")
        self._checked_members[member] = 1

    def _fault(self, shard: int, what: str) -> DataError:
        name = self.folder / self.record.shards[shard].file
        return DataError(f"{name}: {what}; restore the shard, or prepare again with prepare.overwrite=true")

    def __del__(self) -> None:
        self.close()


def check_sizes(folder: Path, split: SplitRecord) -> None:
    """Every file of a split is there and has the length that the manifest states."""
    for record in split.files:
        fault = fault_of_sizes(folder, record)
        if fault is not None:
            raise DataError(f"{fault}; restore it, or prepare again with prepare.overwrite=true")


def fault_of_sizes(folder: Path, record: FileRecord) -> str | None:
    """What is wrong with a file's presence or length; None: nothing."""
    path = folder / record.file
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: missing ({error.strerror})"
    return None if size == record.bytes else f"{path}: has {size} bytes, the manifest says {record.bytes}"


def _load_offsets(folder: Path, manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    record = manifest.splits[split]
    content = (folder / record.index.file).read_bytes()
    if hashlib.sha256(content).hexdigest() != record.index.sha256:
        raise DataError(
            f"{folder / record.index.file}: its content differs from what `prepare` wrote (sha256 does not fit); "
            "restore it, or prepare again with prepare.overwrite=true"
        )
    return np.frombuffer(content, dtype="<i8", offset=NPY_HEADER_BYTES)

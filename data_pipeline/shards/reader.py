"""Samples of a prepared dataset by their number, read straight out of the shards through the saved offsets."""

import collections
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.order import Positions, sample_at
from data_pipeline.shards.folder import DatasetFolder, as_folder
from data_pipeline.shards.layout import DTYPES, NPY_HEADER_BYTES, npy_header
from data_pipeline.shards.manifest import Manifest, ShardRecord, SplitRecord

MAX_OPEN_FILES = 64
Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class PackedDataset:
    """One split of a prepared dataset; safe to use from several threads."""

    def __init__(self, folder: DatasetFolder, manifest: Manifest, split: str, offsets: npt.NDArray[np.int64]) -> None:
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
    def open(cls, place: Path | DatasetFolder, split: Literal["train", "validation"]) -> "PackedDataset":
        """Open a split; a missing or truncated file is a DataError that names it. Contents: see `verify`."""
        folder = as_folder(place)
        manifest = folder.manifest()
        check_sizes(folder, manifest.splits[split])
        return cls(folder, manifest, split, _load_offsets(folder, manifest, split))

    @property
    def parts(self) -> "tuple[PackedDataset, ...]":
        """The datasets that it is made of."""
        return (self,)

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

    def shards_of(self, numbers: npt.NDArray[np.int64]) -> Iterator[tuple[int, DatasetFolder, ShardRecord]]:
        """The shards that these samples lie in, each with the place in `numbers` where it is first needed."""
        shards = np.searchsorted(self._shard_starts, numbers, side="right") - 1
        for shard, place in zip(*(found.tolist() for found in np.unique(shards, return_index=True)), strict=True):
            yield place, self.folder, self.record.shards[shard]

    def read(self, indices: npt.NDArray[np.int64], stop: threading.Event | None = None) -> Tokens:
        """Tokens [n, seq_length + 1] of these samples, in the order asked for (cheapest when sorted).

        Where shards must be fetched first, `stop` ends the waiting for them, by an exception.
        """
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
                descriptor = self._descriptor(shard, stop)
                if not self._checked_members[member]:
                    self._check_member(descriptor, shard, member)
                target = targets[row * sample_bytes : (row + 1) * sample_bytes]
                if os.preadv(descriptor, [target], offset) != sample_bytes:
                    raise self._fault(shard, "ends too early")
        return tokens

    def verify(self) -> None:
        """Read every byte and compare the checksums; DataError names the first file that differs."""
        for record in self.record.files:
            digest = hashlib.sha256()
            for block in self.folder.blocks(record):
                digest.update(block)
            if digest.hexdigest() != record.sha256:
                raise DataError(
                    f"{self.folder.locate(record.file)}: its content differs from what `prepare` wrote "
                    "(sha256 does not fit); restore it, or prepare again with prepare.overwrite=true"
                )

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        with self._lock:
            while self._open_files:
                os.close(self._open_files.popitem()[1])

    def _descriptor(self, shard: int, stop: threading.Event | None) -> int:
        descriptor = self._open_files.get(shard)
        if descriptor is not None:
            self._open_files.move_to_end(shard)
            return descriptor
        if len(self._open_files) >= MAX_OPEN_FILES:
            os.close(self._open_files.popitem(last=False)[1])
        try:
            descriptor = self.folder.open(self.record.shards[shard], stop)
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
        name = self.folder.locate(self.record.shards[shard].file)
        return DataError(f"{name}: {what}; restore the shard, or prepare again with prepare.overwrite=true")

    def __del__(self) -> None:
        self.close()


def check_sizes(folder: DatasetFolder, split: SplitRecord) -> None:
    """Every file of a split is there and has the length that the manifest states."""
    for record in split.files:
        fault = folder.fault(record)
        if fault is not None:
            raise DataError(f"{fault}; restore it, or prepare again with prepare.overwrite=true")


def _load_offsets(folder: DatasetFolder, manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    record = manifest.splits[split].index
    with os.fdopen(folder.open(record), "rb") as file:
        content = os.pread(file.fileno(), record.bytes, 0)
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise DataError(
            f"{folder.locate(record.file)}: its content differs from what `prepare` wrote (sha256 does not fit); "
            "restore it, or prepare again with prepare.overwrite=true"
        )
    return np.frombuffer(content, dtype="<i8", offset=NPY_HEADER_BYTES)

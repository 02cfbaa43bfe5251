"""Samples of a prepared dataset by their number, read straight out of the shards through the saved offsets."""

import collections
import errno
import hashlib
import itertools
import logging
import mmap
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import BadFile, DataError
from data_pipeline.order import Positions, sample_at
from data_pipeline.shards.folder import DatasetFolder, as_folder
from data_pipeline.shards.layout import DTYPES, NPY_HEADER_BYTES, TAR_BLOCK, member_key, npy_header
from data_pipeline.shards.manifest import FileRecord, Manifest, ShardRecord, SplitRecord
from data_pipeline.shards.mapped import MappedShard, Tokens, gather

logger = logging.getLogger(__name__)
MAX_OPEN_FILES = 64
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What keeps a file from being opened and is not its fault."""


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
        self.skips_bad_shards = False
        """Whether samples of bad shards are left out of training and counted."""
        self.dtype = np.dtype(DTYPES[manifest.dtype])
        self._offsets = offsets
        # Samples before each shard, and after the last one.
        self._shard_starts = np.cumsum([0, *(shard.samples for shard in self.record.shards)], dtype=np.int64)
        self._is_checked = np.zeros(len(offsets), dtype=bool)  # of each member
        self._bad_shards: dict[int, str] = {}  # what is wrong with each, by its number
        self._named_shards: set[int] = set()
        self._open_files: collections.OrderedDict[int, MappedShard] = collections.OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, place: Path | DatasetFolder, split: Literal["train", "validation"], *, skip_bad_shards: bool = False
    ) -> "PackedDataset":
        """Open a split; a missing or truncated file is a DataError that names it. Contents: see `verify`.

        `skip_bad_shards`: shards that are bad, now or later, are only told of in the log, unless all are.
        """
        folder = as_folder(place)
        manifest = folder.manifest()
        record = manifest.splits[split]
        check_sizes(folder, [record.index] if skip_bad_shards else record.files)
        dataset = cls(folder, manifest, split, _load_offsets(folder, manifest, split))
        if skip_bad_shards:
            dataset._skip_bad_shards()
        return dataset

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

    def read(
        self,
        indices: npt.NDArray[np.int64],
        stop: threading.Event | None = None,
        skipped: npt.NDArray[np.bool_] | None = None,
    ) -> Tokens:
        """Tokens [n, seq_length + 1] of these samples, in the order asked for; the files are read in theirs.

        Where shards must be fetched first, `stop` ends the waiting for them, by an exception. `skipped` [n]: set for
        samples of bad shards, which then hold ends of documents; without it such a shard is a BadFile error.
        """
        width = self.seq_length + 1
        if not len(indices):
            return np.empty((0, width), dtype=self.dtype)
        places = np.argsort(indices, kind="stable")
        numbers = np.asarray(indices, dtype=np.int64)[places]
        assert numbers[0] >= 0 and numbers[-1] < self.num_samples, "sample number out of range"
        shards = np.searchsorted(self._shard_starts, numbers, side="right") - 1
        borders = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(numbers)]
        if len(borders) - 1 > MAX_OPEN_FILES:
            groups = np.split(places, borders[MAX_OPEN_FILES:-1:MAX_OPEN_FILES])
            return self._read_in_turn(indices, groups, stop, skipped)
        members, rows = np.divmod(numbers, self.manifest.samples_per_member)
        # Members begin at tar's blocks, so that every sample lies at a whole number of tokens within its shard.
        starts = (self._offsets[members] + NPY_HEADER_BYTES) // self.dtype.itemsize + rows * width
        files = []
        is_good = np.ones(len(numbers), dtype=bool)
        with self._lock:
            for first, last in itertools.pairwise(borders):
                shard, here = int(shards[first]), slice(first, last)
                try:
                    files.append(self._checked(shard, members[here], starts[here], stop))
                except BadFile as error:
                    if skipped is None:
                        raise
                    self._give_up(shard, str(error))
                    is_good[here] = False
                    skipped[places[here]] = True
                else:
                    starts[here] += files[-1].start
        if is_good.all():
            return gather(files, starts, width, places)
        tokens: Tokens = np.full((len(numbers), width), self.manifest.tokenizer.eod_id, dtype=self.dtype)
        if files:
            tokens[places[is_good]] = gather(files, starts[is_good], width, np.arange(int(is_good.sum())))
        return tokens

    def _read_in_turn(
        self,
        indices: npt.NDArray[np.int64],
        groups: Sequence[npt.NDArray[np.intp]],
        stop: threading.Event | None,
        skipped: npt.NDArray[np.bool_] | None,
    ) -> Tokens:
        """As `read`, groups of the samples one after the other, so that not too many shards are open at once."""
        tokens: Tokens = np.empty((len(indices), self.seq_length + 1), dtype=self.dtype)
        for group in groups:
            of_group = None if skipped is None else np.zeros(len(group), dtype=bool)
            tokens[group] = self.read(indices[group], stop, of_group)
            if skipped is not None:
                skipped[group] = of_group
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
            self._open_files.clear()

    def _checked(
        self, shard: int, members: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], stop: threading.Event | None
    ) -> MappedShard:
        """The shard of these members, where samples may be read that begin at these tokens of it."""
        if shard in self._bad_shards:
            raise BadFile(self._bad_shards[shard])
        file = self._opened(shard, stop)
        # First: beyond its end a mapped file gives no error but a signal that ends the process.
        needed = (int(starts.max()) + self.seq_length + 1) * self.dtype.itemsize
        if file.memory.size() < self.record.shards[shard].bytes or len(file.memory) < needed:
            raise self._fault(shard, "ends too early")
        if not self._is_checked[members].all():
            for member in np.unique(members).tolist():
                self._check_member(file, shard, member)
        return file

    def _skip_bad_shards(self) -> None:
        self.skips_bad_shards = True
        for shard, record in enumerate(self.record.shards):
            fault = self.folder.fault(record)
            if fault is not None:
                self._bad_shards[shard] = fault
        if self._bad_shards:
            first = next(iter(self._bad_shards.values()))
            counts = f"{len(self._bad_shards)} of {len(self.record.shards)} shards for {self.split}"
            if len(self._bad_shards) == len(self.record.shards):
                raise DataError(f"{self.folder}: {counts} cannot be used, as {first}; restore them")
            logger.warning("%s: %s cannot be used, as %s", self.folder, counts, first)

    def _give_up(self, shard: int, fault: str) -> None:
        """From now on; named once, when the first of its samples is asked for."""
        self._bad_shards[shard] = fault
        if shard not in self._named_shards:
            self._named_shards.add(shard)
            count = self.record.shards[shard].samples
            logger.error("%s; its %d samples are skipped and counted (data.on_bad_shard=skip)", fault, count)

    def _opened(self, shard: int, stop: threading.Event | None) -> MappedShard:
        file = self._open_files.get(shard)
        if file is not None:
            self._open_files.move_to_end(shard)
            return file
        if len(self._open_files) >= MAX_OPEN_FILES:
            self._open_files.popitem(last=False)
        record = self.record.shards[shard]
        try:
            descriptor = self.folder.open(record, stop)
            try:
                about = os.fstat(descriptor)
                if not stat.S_ISREG(about.st_mode):
                    raise self._fault(shard, "is no file")
                if about.st_size < record.bytes:
                    raise self._fault(shard, "ends too early")
                memory = mmap.mmap(descriptor, record.bytes, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
        except OSError as error:
            fault = self._fault(shard, f"cannot be opened ({error.strerror})")
            raise (DataError(str(fault)) if error.errno in SHORTAGES else fault) from None
        file = self._open_files[shard] = MappedShard.of(memory, self.dtype)
        return file

    def _check_member(self, file: MappedShard, shard: int, member: int) -> None:
        """It must have its own name, and begin with just the bytes that the writer puts before this many samples."""
        samples = min(self.manifest.samples_per_member, self.num_samples - member * self.manifest.samples_per_member)
        begin, name = int(self._offsets[member]), f"{member_key(self.split, member)}.npy"
        found = file.memory[begin - TAR_BLOCK : begin].partition(b"\0")[0].decode(errors="replace")
        if found != name:
            raise self._fault(shard, f"holds {found!r} where member {name!r} should be")
        if file.memory[begin : begin + NPY_HEADER_BYTES] != npy_header((samples, self.seq_length + 1), self.dtype.str):
            raise self._fault(shard, f"member {member} does not begin with the header that `prepare` wrote")
        self._is_checked[member] = True

    def _fault(self, shard: int, what: str) -> BadFile:
        name = self.folder.locate(self.record.shards[shard].file)
        return BadFile(f"{name}: {what}; restore the shard, or prepare again with prepare.overwrite=true")


def check_sizes(folder: DatasetFolder, records: Iterable[FileRecord]) -> None:
    """Every one of these files is there and has the length that the manifest states."""
    for record in records:
        fault = folder.fault(record)
        if fault is not None:
            raise DataError(f"{fault}; restore it, or prepare again with prepare.overwrite=true")


def _load_offsets(folder: DatasetFolder, manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    """Where each member's content begins within its shard; processes of a machine share the memory that holds it."""
    record = manifest.splits[split].index
    descriptor = folder.open(record)
    try:
        content = mmap.mmap(descriptor, record.bytes, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    name, remedy = folder.locate(record.file), "prepare again with prepare.overwrite=true"
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise DataError(
            f"{name}: its content differs from what `prepare` wrote (sha256 does not fit); restore it, or {remedy}"
        )
    offsets = np.frombuffer(content, dtype="<i8", offset=NPY_HEADER_BYTES)
    of_split = manifest.splits[split]
    num_samples = sum(shard.samples for shard in of_split.shards)
    num_members = -(-num_samples // manifest.samples_per_member)
    # What a manifest and an index from elsewhere say is used as addresses of memory.
    if num_samples != of_split.num_samples or len(offsets) != num_members:
        raise DataError(
            f"{name}: has {len(offsets)} members, and the shards hold {num_samples} samples, where the manifest says "
            f"{of_split.num_samples}, {manifest.samples_per_member} in each member; {remedy}"
        )
    if num_members and (offsets.min() < TAR_BLOCK or np.any(offsets & (TAR_BLOCK - 1))):
        raise DataError(f"{name}: has a member that begins where no tar has one; {remedy}")
    return offsets

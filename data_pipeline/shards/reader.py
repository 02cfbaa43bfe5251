"""Samples of a prepared dataset by their number, read straight out of the shards through the saved offsets."""

import errno
import hashlib
import logging
import mmap
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import BadFile, DataError, Stopped
from data_pipeline.permutation import Positions, shuffled_indices, splitmix64
from data_pipeline.shards.folder import DatasetFolder, as_folder
from data_pipeline.shards.format import DTYPES, NPY_HEADER_BYTES, TAR_BLOCK, member_hash, member_key
from data_pipeline.shards.manifest import FileRecord, Manifest, ShardRecord, SplitRecord
from data_pipeline.shards.mmap_reader import Samples, Tokens, map_file, start_of

logger = logging.getLogger(__name__)
MAX_MAPPED_SHARDS = 1 << 13
"""Of a dataset: 2 TiB of them as `conf/data` has it. Linux lets a process map 65,530."""
POLL_SECONDS = 1.0
MEMBER_NAME = re.compile(rb"[\w./-]+")
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What keeps a file from being opened and is not its fault."""


class PackedDataset:
    """One split of a prepared dataset; safe to use from several threads."""

    def __init__(self, folder: DatasetFolder, manifest: Manifest, split: str, index: npt.NDArray[np.int64]) -> None:
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
        self._offsets, self._hashes = index.T
        # Samples before each shard, and after the last one.
        self._shard_starts = np.cumsum([0, *(shard.samples for shard in self.record.shards)], dtype=np.int64)
        self._is_checked = np.zeros(len(index), dtype=bool)  # of each member
        self._bad_shards: dict[int, str] = {}  # what is wrong with each, by its number
        self._named_shards: set[int] = set()
        self._mapped: dict[int, _MappedShard] = {}
        self._addresses = np.zeros(len(self.record.shards), dtype=np.int64)  # first token of each that is mapped
        self._looked_at = np.full(len(self.record.shards), -np.inf)  # when each was last seen to be whole
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
        dataset = cls(folder, manifest, split, _load_index(folder, manifest, split))
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

    def sample_indices(self, positions: Positions, seed: int) -> npt.NDArray[np.int64]:
        """Numbers of the samples at these positions of the endless shuffled order."""
        return shuffled_indices(positions, self.num_samples, seed)

    def epoch_at(self, position: int) -> int:
        """Whole passes over the dataset before this position."""
        return position // self.num_samples

    def digest_before(self, position: int) -> str:
        """Names all that decides, with the seed, the samples before a position."""
        return self.manifest.digest

    def sample_hashes(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """What names the content of each of these samples: its member's hash and its place there."""
        members = numbers // self.manifest.samples_per_member
        rows = numbers - members * self.manifest.samples_per_member
        return splitmix64(self._hashes[members].view(np.uint64) + splitmix64(rows.view(np.uint64)))

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
        """Tokens [n, seq_length + 1] of these samples, in the order asked for; `stop`, `skipped`: as for `locate`."""
        if not len(indices):
            return np.empty((0, self.seq_length + 1), dtype=self.dtype)
        return self.locate(indices, stop, skipped).tokens()

    def locate(
        self,
        indices: npt.NDArray[np.int64],
        stop: threading.Event | None = None,
        skipped: npt.NDArray[np.bool_] | None = None,
    ) -> Samples:
        """These samples, at least one, in the order asked for, their pages read in the order of the files.

        `stop` ends the waiting for what must be fetched or compared first, by the exception Stopped. `skipped` [n]: set
        for samples of bad shards, which then hold ends of documents; without it such a shard is a BadFile error. A
        shard is bad where its file is, or where a member that is read for the first time is not what `prepare` wrote.
        """
        width = self.seq_length + 1
        places = np.argsort(indices)
        numbers = np.asarray(indices, dtype=np.int64)[places]
        assert numbers[0] >= 0 and numbers[-1] < self.num_samples, "sample number out of range"
        shards = np.searchsorted(self._shard_starts, numbers, side="right") - 1
        firsts = np.flatnonzero(np.diff(shards, prepend=-1))  # places of the first sample of each shard
        if len(firsts) > MAX_MAPPED_SHARDS:
            groups = np.split(places, firsts[MAX_MAPPED_SHARDS::MAX_MAPPED_SHARDS])
            return self._find_in_turn(indices, groups, stop, skipped)
        members = numbers // self.manifest.samples_per_member
        rows = numbers - members * self.manifest.samples_per_member
        is_good = np.ones(len(numbers), dtype=bool)
        with self._lock:
            is_fresh = self._looked_at[shards] > time.monotonic() - POLL_SECONDS
            is_ready = np.logical_and.reduceat(is_fresh & self._is_checked[members], firsts)
            borders = np.append(firsts, len(numbers))
            used = shards[firsts]
            for which in np.flatnonzero(~is_ready).tolist():
                here = slice(*borders[which : which + 2].tolist())
                try:
                    self._make_ready(int(used[which]), members[here], used, stop)
                except BadFile as error:
                    if skipped is None:
                        raise
                    self._give_up(int(used[which]), str(error))
                    is_good[here] = False
                    skipped[places[here]] = True
            memories: list[Tokens] = [self._mapped[shard].tokens for shard in used.tolist() if shard in self._mapped]
            # Members begin at tar's blocks, so that every sample lies at a whole number of tokens within its shard.
            starts = self._addresses[shards] + (self._offsets[members] + NPY_HEADER_BYTES) // self.dtype.itemsize
            starts += rows * width
        if not is_good.all():
            filling: Tokens = np.full(width, self.manifest.tokenizer.eod_id, dtype=self.dtype)
            memories.append(filling)
            starts[~is_good] = start_of(filling)
        Samples(memories, starts, width).page_in()
        as_asked = np.empty_like(starts)
        as_asked[places] = starts
        return Samples(memories, as_asked, width)

    def _find_in_turn(
        self,
        indices: npt.NDArray[np.int64],
        groups: Sequence[npt.NDArray[np.intp]],
        stop: threading.Event | None,
        skipped: npt.NDArray[np.bool_] | None,
    ) -> Samples:
        """As `locate`, but groups of the samples are copied one after the other: not too many are mapped at once."""
        parts = []
        for group in groups:
            of_group = None if skipped is None else np.zeros(len(group), dtype=bool)
            part = self.locate(indices[group], stop, of_group)
            part.materialize()
            parts.append((group, part))
            if skipped is not None:
                skipped[group] = of_group
        return Samples.joined(parts)

    def verify(self) -> None:
        """Read every byte and compare the checksums; DataError names the first file that differs."""
        for record in self.record.files:
            digest = hashlib.sha256()
            for block in self.folder.blocks(record):
                digest.update(block)
            if digest.hexdigest() != record.sha256:
                raise DataError(
                    f"{self.folder.path_of(record.file)}: its content differs from what `prepare` wrote "
                    "(sha256 does not fit); restore it, or prepare again with prepare.overwrite=true"
                )

    def close(self) -> None:
        """Let go of the files; the next read opens them again."""
        with self._lock:
            self._forget(list(self._mapped))

    def _make_ready(
        self,
        shard: int,
        members: npt.NDArray[np.int64],
        used: npt.NDArray[np.int64],
        stop: threading.Event | None,
    ) -> None:
        """See to it that these members of a shard may be read, while all of the shards `used` are."""
        if stop is not None and stop.is_set():
            raise Stopped  # there may be thousands, on a slow disk
        if shard in self._bad_shards:
            raise BadFile(self._bad_shards[shard])
        record = self.record.shards[shard]
        # Beyond its end a mapped file gives no error but a signal that ends the process.
        if shard in self._mapped and not self.folder.has(record):
            self._forget([shard])
        if shard not in self._mapped:
            if len(self._mapped) >= MAX_MAPPED_SHARDS:
                self._forget(set(self._mapped).difference(used.tolist()))
            self._map(shard, stop)
        self._looked_at[shard] = time.monotonic()
        try:
            self._check_members(shard, members)
        except BadFile:
            if not self.folder.drop_damaged(record):
                raise
            self._map(shard, stop)
            self._check_members(shard, members)

    def _forget(self, shards: Iterable[int]) -> None:
        for shard in shards:
            del self._mapped[shard]
            self._looked_at[shard] = -np.inf

    def _skip_bad_shards(self) -> None:
        self.skips_bad_shards = True
        for shard, record in enumerate(self.record.shards):
            fault = self.folder.fault(record)
            if fault is not None:
                self._bad_shards[shard] = fault
        if self._bad_shards:
            self._refuse_if_all_are_bad()
            logger.warning("%s: %s", self.folder, self._what_is_bad())

    def _give_up(self, shard: int, fault: str) -> None:
        """From now on; named once, when the first of its samples is asked for."""
        self._bad_shards[shard] = fault
        self._looked_at[shard] = -np.inf
        if shard not in self._named_shards:
            self._named_shards.add(shard)
            count = self.record.shards[shard].samples
            logger.error("%s; its %d samples are skipped and counted (data.on_bad_shard=skip)", fault, count)
        self._refuse_if_all_are_bad()

    def _refuse_if_all_are_bad(self) -> None:
        if len(self._bad_shards) == len(self.record.shards):
            raise DataError(f"{self.folder}: {self._what_is_bad()}; nothing is left to train on: restore them")

    def _what_is_bad(self) -> str:
        first = next(iter(self._bad_shards.values()))
        counts = f"{len(self._bad_shards)} of {len(self.record.shards)} shards for {self.split}"
        return f"{counts} cannot be used, as {first}"

    def _map(self, shard: int, stop: threading.Event | None) -> None:
        record = self.record.shards[shard]
        try:
            descriptor = self.folder.open(record, stop)
            try:
                about = os.fstat(descriptor)
                if not stat.S_ISREG(about.st_mode):
                    raise self._fault(shard, "is no file")
                if about.st_size < record.bytes:
                    raise self._fault(shard, "ends too early")
                content = map_file(descriptor, record.bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            fault = self._fault(shard, f"cannot be opened ({error.strerror})")
            raise (DataError(str(fault)) if error.errno in SHORTAGES else fault) from None
        tokens: Tokens = content[: record.bytes // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        self._mapped[shard] = _MappedShard(content, tokens)
        self._addresses[shard] = start_of(tokens)
        first, end = self._shard_starts[shard : shard + 2]
        size = self.manifest.samples_per_member
        self._is_checked[first // size : -(-end // size)] = False  # it may be another file than before

    def _check_members(self, shard: int, members: npt.NDArray[np.int64]) -> None:
        for member in np.unique(members[~self._is_checked[members]]).tolist():
            self._check_member(self._mapped[shard].content, shard, member)

    def _check_member(self, content: npt.NDArray[np.uint8], shard: int, member: int) -> None:
        """It must lie within its shard, have its own name, and the content that the writer hashed."""
        begin, name = int(self._offsets[member]), f"{member_key(self.split, member)}.npy"
        found = content[begin - TAR_BLOCK : begin].tobytes().partition(b"\0")[0]
        if found != name.encode():
            other = repr(found.decode()) if MEMBER_NAME.fullmatch(found) else "no member"
            raise self._fault(shard, f"holds {other} where member {name!r} should be")
        samples = min(self.manifest.samples_per_member, self.num_samples - member * self.manifest.samples_per_member)
        end = begin + NPY_HEADER_BYTES + samples * (self.seq_length + 1) * self.dtype.itemsize
        if end > len(content) or member_hash(content[begin:end].data) != self._hashes[member]:
            raise self._fault(shard, f"the content of member {name!r} differs from what `prepare` wrote")
        self._is_checked[member] = True

    def _fault(self, shard: int, what: str) -> BadFile:
        name = self.folder.path_of(self.record.shards[shard].file)
        return BadFile(f"{name}: {what}; restore the shard, or prepare again with prepare.overwrite=true")


class _MappedShard(NamedTuple):
    content: npt.NDArray[np.uint8]
    tokens: Tokens
    """The same bytes; headers too, whatever they are as tokens."""


def check_sizes(folder: DatasetFolder, records: Iterable[FileRecord]) -> None:
    """Every one of these files is there and has the length that the manifest states."""
    for record in records:
        fault = folder.fault(record)
        if fault is not None:
            raise DataError(f"{fault}; restore it, or prepare again with prepare.overwrite=true")


def _load_index(folder: DatasetFolder, manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    """Offset and hash of each member [members, 2]; processes of a machine share the memory that holds them."""
    record = manifest.splits[split].index
    content = _map_whole(folder, record)
    if content is None and folder.drop_damaged(record):
        content = _map_whole(folder, record)
    name, remedy = folder.path_of(record.file), "prepare again with prepare.overwrite=true"
    if content is None:
        raise DataError(
            f"{name}: its content differs from what `prepare` wrote (sha256 does not fit); restore it, or {remedy}"
        )
    numbers = np.frombuffer(content, dtype="<i8", offset=NPY_HEADER_BYTES)
    of_split = manifest.splits[split]
    num_samples = sum(shard.samples for shard in of_split.shards)
    num_members = -(-num_samples // manifest.samples_per_member)
    # What a manifest and an index from elsewhere say is used as addresses of memory.
    if num_samples != of_split.num_samples or len(numbers) != 2 * num_members:
        raise DataError(
            f"{name}: has {len(numbers) / 2:g} members, and the shards hold {num_samples} samples, where the manifest "
            f"says {of_split.num_samples}, {manifest.samples_per_member} in each member; {remedy}"
        )
    index = numbers.reshape(num_members, 2)
    offsets = index[:, 0]
    if num_members and (offsets.min() < TAR_BLOCK or np.any(offsets & (TAR_BLOCK - 1))):
        raise DataError(f"{name}: has a member that begins where no tar has one; {remedy}")
    return index


def _map_whole(folder: DatasetFolder, record: FileRecord) -> mmap.mmap | None:
    """The content of a file; None where it is not what `prepare` wrote."""
    descriptor = folder.open(record)
    try:
        content = mmap.mmap(descriptor, record.bytes, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    return content if hashlib.sha256(content).hexdigest() == record.sha256 else None

"""Reads samples of a prepared dataset by number, directly from the shards through the saved index."""

import errno
import hashlib
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
from data_pipeline.shards.bad_shards import BadShards
from data_pipeline.shards.folder import DatasetFolder, as_folder
from data_pipeline.shards.format import DTYPES, NPY_HEADER_BYTES, TAR_BLOCK, member_hash, member_key
from data_pipeline.shards.index import RESTORE, check_sizes, load_index
from data_pipeline.shards.manifest import Manifest, ShardRecord, SplitRecord
from data_pipeline.shards.mmap_reader import Samples, Tokens, map_file, start_of

MAX_MAPPED_SHARDS = 1 << 13
"""Limit per dataset: 2 TiB with the shard size in `conf/data`. Linux lets a process map 65,530 regions."""
POLL_SECONDS = 1.0
MEMBER_NAME = re.compile(rb"[\w./-]+")
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors on opening a file that are not the file's fault."""


class PackedDataset:
    """One split of a prepared dataset; safe to use from several threads."""

    def __init__(self, folder: DatasetFolder, manifest: Manifest, split: str, index: npt.NDArray[np.int64]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.split = split
        self.record: SplitRecord = manifest.splits[split]
        self.seq_length = manifest.seq_length
        self.num_samples = self.record.num_samples
        self.end_position: int | None = None  # the stream never ends
        self.skips_bad_shards = False
        """Whether samples of bad shards are skipped and counted."""
        self.dtype = np.dtype(DTYPES[manifest.dtype])
        self._offsets, self._hashes = index.T
        # Number of samples before each shard, and in total.
        self._shard_starts = np.cumsum([0, *(shard.samples for shard in self.record.shards)], dtype=np.int64)
        self._is_checked = np.zeros(len(index), dtype=bool)  # per member
        self._bad_shards = BadShards(folder, split, self.record.shards)
        self._mapped: dict[int, _MappedShard] = {}
        self._addresses = np.zeros(len(self.record.shards), dtype=np.int64)  # address of each first token
        self._looked_at = np.full(len(self.record.shards), -np.inf)  # when each shard was last seen to be complete
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, place: Path | DatasetFolder, split: Literal["train", "validation"], *, skip_bad_shards: bool = False
    ) -> "PackedDataset":
        """Open a split. Raises a DataError that names a missing or truncated file. To check contents, see `verify`.

        With `skip_bad_shards`, bad shards are only logged, now and later, unless all shards are bad.
        """
        folder = as_folder(place)
        manifest = folder.manifest()
        record = manifest.splits[split]
        check_sizes(folder, [record.index] if skip_bad_shards else record.files)
        dataset = cls(folder, manifest, split, load_index(folder, manifest, split))
        if skip_bad_shards:
            dataset.skips_bad_shards = True
            dataset._bad_shards.find_missing()
        return dataset

    @property
    def parts(self) -> "tuple[PackedDataset, ...]":
        """The datasets that this one consists of."""
        return (self,)

    @property
    def description(self) -> str:
        """The dataset's name for messages."""
        return str(self.folder)

    @property
    def is_padded(self) -> bool:
        """Whether targets may be padding, which the loss ignores."""
        return self.manifest.packing == "best_fit"

    @property
    def num_train_tokens(self) -> int:
        return self.record.num_tokens

    def sample_indices(self, positions: Positions, seed: int) -> npt.NDArray[np.int64]:
        """The sample numbers at these positions of the endless shuffled order."""
        return shuffled_indices(positions, self.num_samples, seed)

    def epoch_at(self, position: int) -> int:
        """Complete passes over the dataset before this position."""
        return position // self.num_samples

    def digest_before(self, position: int) -> str:
        """Identifies everything that decides, together with the seed, the samples before a position."""
        return self.manifest.digest

    def sample_hashes(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """A hash of each sample's content, from its member's hash and its row in the member."""
        members = numbers // self.manifest.samples_per_member
        rows = numbers - members * self.manifest.samples_per_member
        return splitmix64(self._hashes[members].view(np.uint64) + splitmix64(rows.view(np.uint64)))

    def shards_of(self, numbers: npt.NDArray[np.int64]) -> Iterator[tuple[int, DatasetFolder, ShardRecord]]:
        """The shards that contain these samples, each with the index in `numbers` of its first use."""
        shards = np.searchsorted(self._shard_starts, numbers, side="right") - 1
        for shard, place in zip(*(found.tolist() for found in np.unique(shards, return_index=True)), strict=True):
            yield place, self.folder, self.record.shards[shard]

    def read(
        self,
        indices: npt.NDArray[np.int64],
        stop: threading.Event | None = None,
        skipped: npt.NDArray[np.bool_] | None = None,
    ) -> Tokens:
        """Tokens [n, seq_length + 1] of these samples, in the given order. For `stop` and `skipped` see `locate`."""
        if not len(indices):
            return np.empty((0, self.seq_length + 1), dtype=self.dtype)
        return self.locate(indices, stop, skipped).tokens()

    def locate(
        self,
        indices: npt.NDArray[np.int64],
        stop: threading.Event | None = None,
        skipped: npt.NDArray[np.bool_] | None = None,
    ) -> Samples:
        """Locate at least one sample, in the given order. Their pages are read in file order.

        Setting `stop` ends a wait for a fetch or a check with Stopped. `skipped` [n] is set for samples of bad shards,
        which are then filled with end-of-document tokens; without it, a bad shard raises BadFile. A shard is bad if its
        file is, or if a member that is read for the first time differs from what `prepare` wrote.
        """
        width = self.seq_length + 1
        places = np.argsort(indices)
        numbers = np.asarray(indices, dtype=np.int64)[places]
        assert numbers[0] >= 0 and numbers[-1] < self.num_samples, "sample number out of range"
        shards = np.searchsorted(self._shard_starts, numbers, side="right") - 1
        firsts = np.flatnonzero(np.diff(shards, prepend=-1))  # index of the first sample of each shard
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
                    self._looked_at[used[which]] = -np.inf
                    self._bad_shards.add(int(used[which]), error)
                    is_good[here] = False
                    skipped[places[here]] = True
            memories: list[Tokens] = [self._mapped[shard].tokens for shard in used.tolist() if shard in self._mapped]
            # Members begin at tar blocks, so the offset of every sample is a whole number of tokens.
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
        """Like `locate`, but copies the samples group by group, to limit the number of mapped shards."""
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
        """Read every byte and compare the checksums. Raises a DataError that names the first file that differs."""
        for record in self.record.files:
            digest = hashlib.sha256()
            for block in self.folder.blocks(record):
                digest.update(block)
            if digest.hexdigest() != record.sha256:
                raise DataError(
                    f"{self.folder.path_of(record.file)}: its content differs from what `prepare` wrote (its sha256 "
                    "does not match)",
                    *RESTORE,
                )

    def close(self) -> None:
        """Unmap all files. The next read maps them again."""
        with self._lock:
            self._forget(list(self._mapped))

    def _make_ready(
        self,
        shard: int,
        members: npt.NDArray[np.int64],
        used: npt.NDArray[np.int64],
        stop: threading.Event | None,
    ) -> None:
        """Make these members of a shard readable, without unmapping the other shards in `used`."""
        if stop is not None and stop.is_set():
            raise Stopped  # there may be thousands of shards, on a slow disk
        self._bad_shards.raise_if_bad(shard)
        record = self.record.shards[shard]
        # Reading a mapped file beyond its end raises a signal that ends the process.
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

    def _map(self, shard: int, stop: threading.Event | None) -> None:
        record = self.record.shards[shard]
        try:
            descriptor = self.folder.open(record, stop)
            try:
                about = os.fstat(descriptor)
                if not stat.S_ISREG(about.st_mode):
                    raise self._fault(shard, "is not a regular file")
                if about.st_size < record.bytes:
                    raise self._fault(shard, "is truncated")
                content = map_file(descriptor, record.bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            fault = self._fault(shard, f"cannot be opened ({error.strerror})")
            raise (DataError(fault.message, *fault.hints) if error.errno in SHORTAGES else fault) from None
        tokens: Tokens = content[: record.bytes // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        self._mapped[shard] = _MappedShard(content, tokens)
        self._addresses[shard] = start_of(tokens)
        first, end = self._shard_starts[shard : shard + 2]
        size = self.manifest.samples_per_member
        self._is_checked[first // size : -(-end // size)] = False  # the file may have been replaced

    def _check_members(self, shard: int, members: npt.NDArray[np.int64]) -> None:
        for member in np.unique(members[~self._is_checked[members]]).tolist():
            self._check_member(self._mapped[shard].content, shard, member)

    def _check_member(self, content: npt.NDArray[np.uint8], shard: int, member: int) -> None:
        """The member must be inside its shard, have the right name, and match its hash in the index."""
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
        return BadFile(f"{name}: {what}", *RESTORE)


class _MappedShard(NamedTuple):
    content: npt.NDArray[np.uint8]
    tokens: Tokens
    """The same bytes as tokens, headers included."""

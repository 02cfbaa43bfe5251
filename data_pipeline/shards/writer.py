"""Writes the samples of a split as WebDataset shards. Equal samples give equal bytes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig
from data_pipeline.imports import without
from data_pipeline.shards.format import DTYPES, TAR_BLOCK, member_hash, member_key, npy_header, tar_member_bytes
from data_pipeline.shards.manifest import FileRecord, ShardRecord, SplitRecord
from data_pipeline.shards.packing import Packing, make_packer, num_padding_tokens


class MemberWriter:
    """Writes samples as members of one split's shards."""

    def __init__(self, folder: Path, split: str, *, dtype: str, shard_bytes: int) -> None:
        self._folder = folder
        self._split = split
        self._descr = DTYPES[dtype]
        self._shard_bytes = shard_bytes
        self._shard: _ShardFile | None = None
        self._shards: list[ShardRecord] = []
        self._index: list[tuple[int, int]] = []

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Write one member: samples [n, seq_length + 1]. All members but the last must have `samples_per_member`
        samples."""
        content = npy_header(rows.shape, self._descr) + rows.tobytes()
        if self._shard is not None and self._shard.member_bytes + tar_member_bytes(len(content)) > self._shard_bytes:
            self._close_shard()
        if self._shard is None:
            self._shard = _ShardFile(self._folder / f"{self._split}-{len(self._shards):05d}.tar")
        self._index.append((self._shard.member_bytes + TAR_BLOCK, member_hash(content)))
        self._shard.write(member_key(self._split, len(self._index) - 1), content, len(rows))

    def close(self) -> tuple[tuple[ShardRecord, ...], FileRecord]:
        """Write the index. Returns the records of the shards and of the index."""
        self._close_shard()
        return tuple(self._shards), self._write_index()

    def abort(self) -> None:
        """Close the open file without finishing it."""
        if self._shard is not None:
            self._shard.file.file.close()
            self._shard = None

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.close())
            self._shard = None

    def _write_index(self) -> FileRecord:
        path = self._folder / f"{self._split}.index.npy"
        index = np.array(self._index, dtype="<i8").reshape(-1, 2)
        content = npy_header(index.shape, "<i8") + index.tobytes()
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return FileRecord(file=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class SplitWriter:
    """Packs and writes the documents of one split. `close` returns its record."""

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        seq_length: int,
        dtype: str,
        samples_per_member: int,
        shard_bytes: int,
        packing: Packing,
        eod_id: int,
    ) -> None:
        self._members = MemberWriter(folder, split, dtype=dtype, shard_bytes=shard_bytes)
        self._seq_length = seq_length
        self._packing = packing
        self._eod_id = eod_id
        self._packer = make_packer(packing, seq_length + 1, DTYPES[dtype], eod_id)
        self._member = np.empty((samples_per_member, seq_length + 1), dtype=DTYPES[dtype])
        self._filled = 0
        self._num_documents = self._num_tokens = self._num_text_bytes = self._num_padding_tokens = 0

    def add(self, tokens: npt.NDArray[Any], num_text_bytes: int) -> None:
        """Append one document: its tokens, including the end-of-document token."""
        self.add_all(tokens, np.array([len(tokens)]), num_text_bytes)

    def add_all(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], num_text_bytes: int) -> None:
        """Append concatenated documents of these lengths."""
        self._num_documents += len(lengths)
        self._num_tokens += len(tokens)
        self._num_text_bytes += num_text_bytes
        for samples in self._packer.add(tokens, lengths):
            self._write(samples)

    def close(self) -> SplitRecord:
        """Write what is left, except a tail that does not fill a sample, and the index."""
        for samples in self._packer.close():
            self._write(samples)
        if self._filled:
            self._write_member()
        shards, index = self._members.close()
        num_samples = sum(shard.samples for shard in shards)
        num_held = num_samples * (self._seq_length + 1) - self._num_padding_tokens
        if self._packing == "stream" and num_samples:
            num_held -= num_samples - 1  # tokens shared by neighbouring samples
        return SplitRecord(
            shards=shards,
            index=index,
            num_samples=num_samples,
            num_documents=self._num_documents,
            num_tokens=self._num_tokens,
            num_text_bytes=self._num_text_bytes,
            num_tail_tokens=self._num_tokens - num_held,
            num_padding_tokens=self._num_padding_tokens,
        )

    def abort(self) -> None:
        """Close the open file without finishing it."""
        self._members.abort()

    def _write(self, samples: npt.NDArray[Any]) -> None:
        if self._packing == "best_fit":
            self._num_padding_tokens += int(num_padding_tokens(samples, self._eod_id).sum())
        while len(samples):
            taken = min(len(samples), len(self._member) - self._filled)
            self._member[self._filled : self._filled + taken] = samples[:taken]
            self._filled += taken
            samples = samples[taken:]
            if self._filled == len(self._member):
                self._write_member()

    def _write_member(self) -> None:
        samples, self._filled = self._member[: self._filled], 0
        self._members.write(samples)


@contextmanager
def split_writers(
    folder: Path, data: DataConfig, *, seq_length: int, dtype: str, eod_id: int
) -> Iterator[dict[str, SplitWriter]]:
    """Yields a writer for each split. At the end, files of writers that were not closed are left unfinished."""
    writers = {
        name: SplitWriter(
            folder,
            name,
            seq_length=seq_length,
            dtype=dtype,
            samples_per_member=data.samples_per_member,
            shard_bytes=data.shard_bytes,
            packing=data.packing,
            eod_id=eod_id,
        )
        for name in ("train", "validation")
    }
    try:
        yield writers
    finally:
        for writer in writers.values():
            writer.abort()


class _HashingFile:
    """Hashes what is written to a file."""

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.file: BinaryIO = path.open("wb")

    def write(self, block: bytes) -> int:
        if self.file.closed:
            return len(block)  # after `abort`, the tar writer still writes its trailer when it is garbage-collected
        self.sha256.update(block)
        self.size += len(block)
        return self.file.write(block)


class _ShardFile:
    """A tar file being written."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.samples = 0
        self.member_bytes = 0
        self.file = _HashingFile(path)
        with without("torch"):  # skips webdataset's loaders, which are not used here and take seconds to import
            from webdataset.writer import TarWriter

        # Owner, mode and time are fixed, because they would differ between two runs.
        self._tar = TarWriter(
            self.file, user="pretrain", group="pretrain", mode=0o444, mtime=0, encoder=False, compress=False
        )

    def write(self, key: str, content: bytes, samples: int) -> None:
        self._tar.write({"__key__": key, "npy": content})
        self.member_bytes += tar_member_bytes(len(content))
        self.samples += samples

    def close(self) -> ShardRecord:
        self._tar.close()
        with self.file.file as file:
            file.flush()
            os.fsync(file.fileno())
        return ShardRecord(
            file=self.name, samples=self.samples, bytes=self.file.size, sha256=self.file.sha256.hexdigest()
        )

"""All documents that the inputs name, streamed one at a time, with a count of what was left out and why."""

import collections
import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import PurePath
from typing import BinaryIO

from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.compression import ByteReader, plain_name
from data_pipeline.sources.files import InputFile, find_files
from data_pipeline.sources.readers import Unreadable, fault, read_jsonl, read_text


class Corpus:
    """The inputs of one configuration; `documents` may be asked for again and gives the same."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self.files = find_files(data.inputs, data.include, data.cache)
        self.disk_bytes = sum(file.num_bytes for file in self.files)
        self.dropped: collections.Counter[str] = collections.Counter()
        """By reason, of the latest pass."""
        self.num_cut_files = 0
        """Text files cut into several documents, in the latest pass."""
        self.disk_position = 0
        """Bytes taken from the disk in the latest pass."""

    @property
    def status_digest(self) -> str:
        """Names, sizes and times of all files: if equal, nothing was touched."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.identity}\n".encode(errors="replace"))
        return digest.hexdigest()

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Every document that is UTF-8 and not empty; text files are cut into documents of `document_bytes` at most."""
        self.dropped.clear()
        self.num_cut_files = self.disk_position = 0
        for file in self.files:
            before = self.disk_position
            with closing(file.open()) as raw:
                position, items = self._read(raw, file, document_bytes)
                for number, item in enumerate(items):
                    self.disk_position = before + position()
                    if number == 1 and not _has_records(file):
                        self.num_cut_files += 1
                    if isinstance(item, Unreadable):
                        if self._data.encoding_errors == "fail":
                            raise fault(item)
                        self.dropped[item.reason] += 1
                    elif not item.text:
                        self.dropped["empty"] += 1
                    else:
                        yield item
            self.disk_position = before + file.num_bytes

    def _read(
        self, raw: BinaryIO, file: InputFile, document_bytes: int
    ) -> tuple[Callable[[], int], Iterator[Document | Unreadable]]:
        """How far the file is read, in bytes; its documents."""
        key = self._data.text_key
        if _is_parquet(file):
            from data_pipeline.sources.parquet import ParquetReader  # only who has such files waits for pyarrow

            table = ParquetReader(raw, file.name, file.num_bytes, key)
            return table.compressed_position, table.documents()
        reader = ByteReader(raw, file.name)
        by_line = plain_name(file.name).endswith(".jsonl")
        items = read_jsonl(reader, file.name, key) if by_line else read_text(reader, file.name, document_bytes)
        return reader.compressed_position, items


def _is_parquet(file: InputFile) -> bool:
    if not plain_name(file.name).endswith(".parquet"):
        return False
    if plain_name(file.name) != PurePath(file.name).name:
        raise DataError(f"{file.name}: Parquet is compressed inside and read from any place in it; unpack the file")
    return True


def _has_records(file: InputFile) -> bool:
    return plain_name(file.name).endswith((".jsonl", ".parquet"))

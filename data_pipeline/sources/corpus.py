"""All documents that the inputs name, streamed one at a time, with a count of what was left out and why."""

import collections
import hashlib
from collections.abc import Iterator
from contextlib import closing

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
        self.files = find_files(data.inputs, data.include)
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
            digest.update(f"{file.path.resolve()}\0{file.num_bytes}\0{file.modified_ns}\n".encode(errors="replace"))
        return digest.hexdigest()

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Every document that is UTF-8 and not empty; text files are cut into documents of `document_bytes` at most."""
        self.dropped.clear()
        self.num_cut_files = self.disk_position = 0
        for file in self.files:
            before = self.disk_position
            try:
                raw = file.path.open("rb")
            except OSError as error:
                raise DataError(f"{file.name}: cannot be read ({error.strerror})") from None
            with closing(raw):
                reader = ByteReader(raw, file.name)
                for number, item in enumerate(self._read(reader, file, document_bytes)):
                    self.disk_position = before + reader.compressed_position()
                    if number == 1 and not _is_jsonl(file):
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

    def _read(self, reader: ByteReader, file: InputFile, document_bytes: int) -> Iterator[Document | Unreadable]:
        if _is_jsonl(file):
            return read_jsonl(reader, file.name, self._data.text_key)
        return read_text(reader, file.name, document_bytes)


def _is_jsonl(file: InputFile) -> bool:
    return plain_name(file.name).endswith(".jsonl")

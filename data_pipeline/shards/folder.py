"""Where the files of a prepared dataset lie: a folder of this machine, or whatever else offers the same."""

import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import FileRecord, Manifest
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.loading import TokenizerFiles

READ_BYTES = 16 << 20


class DatasetFolder(Protocol):
    """What a dataset is read from; as text it is its name for messages."""

    def path_of(self, name: str) -> str:
        """The place of a file, for messages."""

    def manifest(self) -> Manifest: ...

    def tokenizer_files(self, manifest: Manifest) -> TokenizerFiles:
        """As they are there, whole or not."""

    def tokenizer(self, manifest: Manifest) -> Tokenizer:
        """Raises DataError where it is not the one that the manifest names."""

    def open(self, record: FileRecord, stop: threading.Event | None = None) -> int:
        """A descriptor of a file; where that must be fetched first, `stop` ends the waiting by an exception."""

    def has(self, record: FileRecord) -> bool:
        """Whether a file that was opened is still there, at its full length; asked often."""

    def fault(self, record: FileRecord) -> str | None:
        """What is wrong with a file's presence or length, as far as is known without reading it; None: nothing."""

    def blocks(self, record: FileRecord) -> Iterator[bytes]:
        """Every byte of a file as it lies there now."""

    def drop_damaged(self, record: FileRecord) -> bool:
        """After a fault in a file's content: remove it if it is a damaged copy; False: it is none, and stays as it is.

        Otherwise another `open` gives the content that the checksum is of.
        """


class LocalFolder:
    """A folder of this machine: files are read where they are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def path_of(self, name: str) -> str:
        return str(self.path / name)

    def manifest(self) -> Manifest:
        return self._manifest

    @functools.cached_property
    def _manifest(self) -> Manifest:
        return Manifest.load(self.path)

    def tokenizer(self, manifest: Manifest) -> Tokenizer:
        return self.tokenizer_files(manifest).load(manifest.tokenizer.fingerprint)

    def tokenizer_files(self, manifest: Manifest) -> TokenizerFiles:
        return TokenizerFiles.read(self.path / manifest.tokenizer.file)

    def open(self, record: FileRecord, stop: threading.Event | None = None) -> int:
        return os.open(self.path / record.file, os.O_RDONLY)

    def has(self, record: FileRecord) -> bool:
        return self.fault(record) is None

    def fault(self, record: FileRecord) -> str | None:
        path = f"{self.path}/{record.file}"
        try:
            size = os.stat(path).st_size  # noqa: PTH116  # quick: there may be thousands
        except OSError as error:
            return f"{path}: missing ({error.strerror})"
        return None if size == record.bytes else f"{path}: has {size} bytes, the manifest says {record.bytes}"

    def blocks(self, record: FileRecord) -> Iterator[bytes]:
        path = self.path / record.file
        try:
            with path.open("rb") as file:
                while block := file.read(READ_BYTES):
                    yield block
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def drop_damaged(self, record: FileRecord) -> bool:
        return False  # it is no copy


def as_folder(place: Path | DatasetFolder) -> DatasetFolder:
    """A path is a folder of this machine."""
    return LocalFolder(place) if isinstance(place, Path) else place

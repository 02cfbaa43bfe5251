"""The files of a prepared dataset: in a local folder, or in anything with the same interface."""

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
    """The files of a dataset. Its `str` names it in messages."""

    def path_of(self, name: str) -> str:
        """The path or URL of a file, for messages."""

    def manifest(self) -> Manifest: ...

    def tokenizer_files(self, manifest: Manifest) -> TokenizerFiles:
        """The tokenizer's files, unverified."""

    def tokenizer(self, manifest: Manifest) -> Tokenizer:
        """Raises DataError if it is not the tokenizer that the manifest names."""

    def open(self, record: FileRecord, stop: threading.Event | None = None) -> int:
        """A file descriptor of a file. If the file must be fetched first, setting `stop` ends the wait with Stopped."""

    def has(self, record: FileRecord) -> bool:
        """Whether a file that was opened is still there at its full length. Called often."""

    def fault(self, record: FileRecord) -> str | None:
        """The fault of a file's presence or length, found without reading it; None if no fault is known."""

    def blocks(self, record: FileRecord) -> Iterator[bytes]:
        """All bytes of a file as it is now."""

    def drop_damaged(self, record: FileRecord) -> bool:
        """Call when a file's content is damaged. Removes it and returns True if it is a cached copy; otherwise returns
        False.

        After True, another `open` fetches the file again.
        """


class LocalFolder:
    """A local folder, whose files are read in place."""

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
        return False  # it is not a copy


def as_folder(place: Path | DatasetFolder) -> DatasetFolder:
    """Wrap a path in a LocalFolder."""
    return LocalFolder(place) if isinstance(place, Path) else place

"""A prepared dataset at a URL: shards and the index go through the node's cache, small files are read directly."""

import functools
import re
import threading
from collections.abc import Iterator

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError
from data_pipeline.remote.cache import Cache
from data_pipeline.remote.transfer import blocks, read_small
from data_pipeline.shards.manifest import MANIFEST_FILE, FileRecord, Manifest
from data_pipeline.storage.urls import FILE_MARK, PIPE, join, redact_url
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.loading import TokenizerFiles

_PLAIN_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RemoteFolder:
    """A DatasetFolder at a URL."""

    def __init__(self, url: str, config: CacheConfig) -> None:
        if url.startswith(PIPE):
            _check_pipe(url, config)
        self._url, self._config = url, config
        self.cache = Cache(config)

    def __str__(self) -> str:
        return redact_url(self._url)

    def path_of(self, name: str) -> str:
        return redact_url(self.address(name))

    def address(self, name: str) -> str:
        """The URL of a file."""
        return join(self._url, name)

    def manifest(self) -> Manifest:
        return self._manifest

    @functools.cached_property
    def _manifest(self) -> Manifest:
        manifest = Manifest.parse(read_small(self.address(MANIFEST_FILE), self._config), self.path_of(MANIFEST_FILE))
        records = [record for split in manifest.splits.values() for record in split.files]
        of_tokenizer = [name for name in (manifest.tokenizer.file, manifest.tokenizer.settings_file) if name]
        for name in (*of_tokenizer, *(record.file for record in records)):
            if not _PLAIN_NAME.fullmatch(name):  # it becomes part of URLs and commands
                raise DataError(
                    f"{self.path_of(MANIFEST_FILE)}: {name!r} must be a plain file name",
                    "prepare again",
                )
        for record in records:
            if not _SHA256.fullmatch(record.sha256):  # it becomes a file name in the cache
                raise DataError(f"{self.path_of(MANIFEST_FILE)}: {record.sha256!r} is not a sha256", "prepare again")
        return manifest

    def tokenizer(self, manifest: Manifest) -> Tokenizer:
        return self.tokenizer_files(manifest).load(manifest.tokenizer.fingerprint)

    def tokenizer_files(self, manifest: Manifest) -> TokenizerFiles:
        record = manifest.tokenizer
        content = read_small(self.address(record.file), self._config)
        beside = record.settings_file
        settings = read_small(self.address(beside), self._config) if beside else b""
        return TokenizerFiles(record.file, self.path_of(record.file), content, settings)

    def open(self, record: FileRecord, stop: threading.Event | None = None) -> int:
        return self.cache.open(record, self.address(record.file), stop)

    def has(self, record: FileRecord) -> bool:
        return self.cache.has(record)

    def fault(self, record: FileRecord) -> str | None:
        return None  # the length is checked when the file is fetched; asking for thousands of files would take minutes

    def blocks(self, record: FileRecord) -> Iterator[bytes]:
        return blocks(self.address(record.file), self._config, size=record.bytes)

    def drop_damaged(self, record: FileRecord) -> bool:
        self.cache.drop_damaged(record)
        return True


def _check_pipe(url: str, config: CacheConfig) -> None:
    if not config.allow_pipe:
        raise DataError(
            f"data.path={url}: is a command, and commands are not allowed",
            "set data.cache.allow_pipe=true if you trust it",
            "give a URL",
        )
    if FILE_MARK not in url:
        raise DataError(
            f"data.path={url}: must contain {FILE_MARK} where the file name goes",
            f"for example, data.path='pipe:cat /data/set/{FILE_MARK}'",
        )

"""The files that an input URL names: one file, a folder's files, or those that match a pattern."""

import glob
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from data_pipeline.config import CacheConfig
from data_pipeline.errors import InputError
from data_pipeline.remote.errors import PermanentError, TransientError
from data_pipeline.remote.fsspec_store import RemotePath, version_of
from data_pipeline.remote.transfer import Attempts
from data_pipeline.remote.transport import connect
from data_pipeline.storage.file_names import choose, is_included
from data_pipeline.storage.urls import PIPE, is_http, redact_url

Found = TypeVar("Found")
_MAGIC = re.compile("[*?[]")


@dataclass(frozen=True)
class RemoteEntry:
    """A remote file as listed by its server."""

    url: str
    name: str
    """For messages and records: the URL, or the path relative to the parent of the given folder."""
    size: int
    version: str | None


Listing = tuple[list[RemoteEntry], list[str]]
"""The files to read, and the names of ignored files in the folder."""


def list_remote(url: str, include: Sequence[str], config: CacheConfig) -> Listing:
    """List the files of a URL, sorted by name. Raises InputError if the list is empty."""
    if url.startswith(PIPE):
        raise InputError(f"{url}: a command can only be used for data.path", "name files, folders or URLs")
    if is_http(url):
        return [_with_retries(url, config, lambda: _http_entry(url, config))], []
    return _with_retries(url, config, lambda: _entries(url, include, config))


def _http_entry(url: str, config: CacheConfig) -> RemoteEntry:
    name = PurePosixPath(redact_url(url))
    if url.endswith("/") or "*" in name.name:
        raise InputError(f"{redact_url(url)}: HTTP cannot list a folder", "name the files in it")
    with closing(connect(url, 0, config.timeout_seconds)) as stream:
        return _entry(url, redact_url(url), stream.size, stream.version)


def _entries(url: str, include: Sequence[str], config: CacheConfig) -> Listing:
    with closing(RemotePath(url, config.timeout_seconds)) as place:
        try:
            details = place.details()  # first, because a file name may look like a pattern
        except PermanentError:
            if not glob.has_magic(place.path):
                raise
            found = place.glob()
            top = _MAGIC.split(place.path, maxsplit=1)[0].rpartition("/")[0]
            name_of = lambda path: redact_url(place.url_of(path))  # noqa: E731
        else:
            if details.get("type") != "directory":
                return [_entry(url, redact_url(url), details.get("size"), version_of(details))], []
            found = {path: of for path, of in place.find().items() if is_included(PurePosixPath(path).name, include)}
            top = place.path.rstrip("/")
            parent = PurePosixPath(top).parent
            name_of = lambda path: PurePosixPath(path).relative_to(parent).as_posix()  # noqa: E731
        within = {path.removeprefix(top).lstrip("/"): path for path in found}
        chosen, others = choose(within)
        entries = [
            _entry(place.url_of(path), name_of(path), found[path].get("size"), version_of(found[path]))
            for path in map(within.__getitem__, chosen)
        ]
    if not entries:
        hidden = f" ({len(others)} hidden files are ignored)" if others else ""
        raise InputError(
            f"{redact_url(url)}: has no file that matches data.include={list(include)}{hidden}",
            "give other patterns",
            "name files",
        )
    return entries, others


def _entry(url: str, name: str, size: int | None, version: str | None) -> RemoteEntry:
    if size is None:
        raise InputError(
            f"{name}: its server does not report its length, so a truncated file would not be noticed",
            "copy the file first",
        )
    return RemoteEntry(url, name, size, version)


def _with_retries(url: str, config: CacheConfig, ask: Callable[[], Found]) -> Found:
    attempts = Attempts(url, config, threading.Event())
    while True:
        try:
            return ask()
        except PermanentError as error:
            raise InputError(f"{redact_url(url)}: {error}", "check the address and its access rights") from None
        except TransientError as error:
            attempts.failed(
                f"cannot be listed: {error}", "check the address and the network", "raise data.cache.timeout_seconds"
            )

"""Which files a URL among the inputs names: one file, those of a folder, or those that fit a pattern."""

import glob
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError
from data_pipeline.remote.addresses import PIPE, is_http, shown
from data_pipeline.remote.transfer import Attempts
from data_pipeline.remote.transport import Interrupted, Refused, connect, file_system, vendor_errors, version_of
from data_pipeline.sources.names import is_included

Found = TypeVar("Found")


@dataclass(frozen=True)
class RemoteEntry:
    """A file as its place tells of it."""

    url: str
    name: str
    """For messages and records: the URL, or relative to the parent of the folder given."""
    size: int
    version: str | None


def list_remote(url: str, include: Sequence[str], config: CacheConfig) -> list[RemoteEntry]:
    """The files, sorted by their names; DataError where there is none."""
    if url.startswith(PIPE):
        raise DataError(f"data.inputs: {url}: commands serve data.path only; name files, folders or URLs")
    if is_http(url):
        return [_insist(url, config, lambda: _http_entry(url, config))]
    return _insist(url, config, lambda: _entries(url, include))


def _http_entry(url: str, config: CacheConfig) -> RemoteEntry:
    name = PurePosixPath(shown(url))
    if url.endswith("/") or "*" in name.name:
        raise DataError(f"data.inputs: {shown(url)}: HTTP does not tell what is in a folder; name its files")
    with closing(connect(url, 0, config.timeout_seconds)) as stream:
        return _entry(url, shown(url), stream.size, stream.version)


def _entries(url: str, include: Sequence[str]) -> list[RemoteEntry]:
    with vendor_errors():
        system, path = file_system(url)
        if glob.has_magic(path):
            found = {name: of for name, of in system.glob(path, detail=True).items() if of["type"] == "file"}
            names = {name: shown(system.unstrip_protocol(name)) for name in found}
        elif system.isdir(path):
            found = {
                name: of
                for name, of in system.find(path, detail=True).items()
                if is_included(PurePosixPath(name).name, include)
            }
            parent = PurePosixPath(path.rstrip("/")).parent
            names = {name: PurePosixPath(name).relative_to(parent).as_posix() for name in found}
        else:
            found, names = {path: system.info(path)}, {path: shown(url)}
        if not found:
            raise DataError(
                f"data.inputs: {shown(url)} has no file that matches it and data.include={list(include)}; "
                "give other patterns, or name files"
            )
        in_order = sorted(found, key=lambda name: PurePosixPath(name).parts)
        return [
            _entry(system.unstrip_protocol(name), names[name], found[name].get("size"), version_of(found[name]))
            for name in in_order
        ]


def _entry(url: str, name: str, size: int | None, version: str | None) -> RemoteEntry:
    if size is None:
        raise DataError(f"data.inputs: {name}: its length is not told, and so its end cannot be known; copy it first")
    return RemoteEntry(url, name, size, version)


def _insist(url: str, config: CacheConfig, ask: Callable[[], Found]) -> Found:
    attempts = Attempts(url, config, threading.Event())
    while True:
        try:
            return ask()
        except Refused as error:
            raise DataError(f"data.inputs: {shown(url)}: {error}; check the address, and who may read it") from None
        except Interrupted as error:
            attempts.failed(f"cannot be found: {error}", "mend the address or the way to it")

"""A node-local cache of remote dataset files, stored under their checksums. Each file is fetched once for all
processes.

A file gets its name only after its checksum was verified. While it is fetched it is called `NAME.partial` and is locked
by the process that fetches it. Locks end with their process, so a killed process leaves an unlocked partial file, which
the next fetch replaces.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from data_pipeline.config import CacheConfig
from data_pipeline.errors import NO_SPACE, DataError, NoSpace, Stopped
from data_pipeline.remote.cache_waits import Entry, Refetches, WaitForRoom
from data_pipeline.remote.transfer import fetch, max_retry_seconds
from data_pipeline.shards.manifest import FileRecord

logger = logging.getLogger(__name__)
PARTIAL = ".partial"
LOCK_FILE = "lock"
POLL_SECONDS = 0.05
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_folder(config: CacheConfig) -> Path:
    """The configured folder, or one in the user's cache directory."""
    kept = config.dir or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/pretrain/shards"
    try:
        return Path(kept).expanduser()
    except RuntimeError:
        raise DataError(
            f"data.cache.dir={config.dir or 'null'}: the home folder in {kept} is unknown",
            "set data.cache.dir to another folder",
        ) from None


class Cache:
    """A cache folder, shared by all processes that use it."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self.folder = cache_folder(config)
        self._lost = Refetches(f"data.cache.dir={self.folder}", f"data.cache.max_bytes={config.max_bytes:,}")

    def open(self, record: FileRecord, url: str, stop: threading.Event | None = None) -> int:
        """A file descriptor of the complete file, fetched from `url` if needed. It stays valid after the file is
        evicted."""
        stop = stop or threading.Event()
        while True:
            descriptor = self._find(record)
            if descriptor is None:
                descriptor = self._fetch(record, url, stop)
            if descriptor is not None:
                return descriptor
            if stop.wait(POLL_SECONDS):  # another process is fetching it
                raise Stopped

    def fetch(self, record: FileRecord, url: str, stop: threading.Event) -> bool:
        """Make sure the file is cached. Returns False if another process is still fetching it."""
        descriptor = self._find(record)
        if descriptor is None:
            descriptor = self._fetch(record, url, stop)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def has(self, record: FileRecord) -> bool:
        """Whether the complete file is cached. This counts as a use."""
        path = self._path(record)
        with self._faults(), contextlib.suppress(FileNotFoundError):
            with contextlib.suppress(OSError):  # the file belongs to another user, or the disk is read-only
                os.utime(path)
            return path.stat().st_size == record.bytes
        return False

    def drop_damaged(self, record: FileRecord) -> None:
        """Remove a file whose content no longer matches its checksum, so that the next `open` fetches it again."""
        path = self._path(record)
        with self._faults(), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == record.sha256:
                return
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else another process has already replaced it
                logger.warning(
                    "%s: this copy is damaged (its sha256 does not match); %s is fetched again", path, record.file
                )
                path.unlink()
                self._lost.forget(record)

    def check_holds(self, records: Iterable[FileRecord]) -> None:
        """Raise DataError unless all these files fit in the cache at once.

        A shuffled order reads from every file all the time, so a smaller cache would fetch the same files over and
        over.
        """
        sizes = {record.sha256: record.bytes for record in records}
        needed, limit = sum(sizes.values()), self._config.max_bytes
        if needed > limit:
            raise DataError(
                f"data.cache.max_bytes={limit:,}: the shards of this run have {needed:,} bytes, and a shuffled order "
                "needs all of them",
                "raise data.cache.max_bytes",
                "copy the dataset to a local folder of each node",
            )
        with self._faults():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            here = {path.name: size for _, size, path in self._entries()}
            status = os.statvfs(self.folder)
        others = sum(size for name, size in here.items() if name not in sizes)
        missing = sum(size for name, size in sizes.items() if name not in here)
        room = status.f_bavail * status.f_frsize + others
        if missing > room:
            raise DataError(
                f"data.cache.dir={self.folder}: {missing:,} bytes must still be fetched, but the disk has room for "
                f"{room:,}",
                "free some space",
                "choose a data.cache.dir on another disk",
            )

    def _find(self, record: FileRecord) -> int | None:
        path = self._path(record)
        with self._faults():
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            if os.fstat(descriptor).st_size != record.bytes:  # changed since it got its name
                os.close(descriptor)
                path.unlink(missing_ok=True)
                return None
            with contextlib.suppress(OSError):
                os.utime(descriptor)  # eviction takes the least recently used
            self._lost.see(record)
            return descriptor

    def _fetch(self, record: FileRecord, url: str, stop: threading.Event) -> int | None:
        """A file descriptor of the fetched file, or None if another process is fetching it."""
        path = self._path(record)
        partial = path.with_name(path.name + PARTIAL)
        with self._faults():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = _lock(partial)
            if file is None:
                return None
            with file:
                try:
                    file.truncate()  # a killed process leaves the file at its full length
                    descriptor = self._find(record)  # the process before may have finished it
                    if descriptor is not None:
                        partial.unlink()
                        return descriptor
                    self._lost.miss(record)
                    self._reserve(record, file, stop)
                    fetch(url, record, file, self._config, stop)
                    file.flush()
                    os.fsync(file.fileno())
                    partial.replace(path)
                    self._lost.see(record)
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
                fcntl.flock(file, fcntl.LOCK_UN)
                return os.dup(file.fileno())

    def _reserve(self, record: FileRecord, file: IO[bytes], stop: threading.Event) -> None:
        """Extend `file` to its final length, after evicting other files to stay within the limit."""
        limit = self._config.max_bytes
        if record.bytes > limit:
            raise DataError(
                f"data.cache.max_bytes={limit:,}: {record.file} alone has {record.bytes:,} bytes",
                "raise data.cache.max_bytes",
            )
        what = f"data.cache.max_bytes={limit:,}: no room for the {record.bytes:,} bytes of {record.file}"
        waiting = WaitForRoom(what, max_retry_seconds(self._config))
        while True:
            with (self.folder / LOCK_FILE).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                in_the_way = self._evict(limit - record.bytes)
                if not in_the_way:
                    file.truncate(record.bytes)
                    return
            waiting.look(in_the_way)
            if stop.wait(POLL_SECONDS):
                raise Stopped

    def _evict(self, limit: int) -> list[Entry]:
        """Remove the least recently used files until at most `limit` bytes are left.

        If that is not enough, return the files that other processes are fetching, which cannot be evicted yet.
        """
        entries = sorted(self._entries())
        total, in_the_way = sum(size for _, size, _ in entries), []
        for entry in entries:
            if total <= limit:
                return []
            _, size, path = entry
            if _remove(path):
                total -= size
            else:
                in_the_way.append(entry)
        return in_the_way if total > limit else []

    def _entries(self) -> list[Entry]:
        """The non-empty files of the cache. Other files in the folder are ignored, and files may disappear
        meanwhile."""
        entries = []
        for path in self.folder.iterdir():
            if _SHA256.fullmatch(path.name.removesuffix(PARTIAL)):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if status.st_size:
                        entries.append((status.st_mtime_ns, status.st_size, path))
        return entries

    def _path(self, record: FileRecord) -> Path:
        assert _SHA256.fullmatch(record.sha256), "checked when the manifest was read"
        return self.folder / record.sha256

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise NoSpace(
                    f"data.cache.dir={self.folder}: no space left on the disk",
                    "free some space",
                    "choose a data.cache.dir on another disk",
                ) from None
            raise DataError(
                f"data.cache.dir={self.folder}: cannot be used ({error})", "choose another data.cache.dir"
            ) from None


def _remove(path: Path) -> bool:
    """Remove a file. Returns False if another process is fetching it."""
    if not path.name.endswith(PARTIAL):
        path.unlink(missing_ok=True)
        return True
    file = _lock(path)
    if file is None:
        return False
    with file:
        path.unlink()
    return True


def _lock(path: Path) -> IO[bytes] | None:
    """Create (if needed) and lock the file at `path`. Returns None if another process holds the lock."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # it was renamed or removed before we got the lock

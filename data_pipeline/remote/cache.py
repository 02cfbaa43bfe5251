"""Files of datasets that lie elsewhere, kept on this node under their checksums, each fetched once for all processes.

A file has its name from the moment it was found whole; while it is fetched it is `NAME.partial`, locked by who fetches
it. Locks go with their process, so a killed one leaves a partial file that nobody trusts and the next fetch replaces.
"""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError, Stopped
from data_pipeline.remote.transfer import fetch
from data_pipeline.shards.manifest import FileRecord
from data_pipeline.staging import NO_SPACE

PARTIAL = ".partial"
LOCK_FILE = "lock"
SECONDS_BETWEEN_LOOKS = 0.05
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_folder(config: CacheConfig) -> Path:
    """Where files are kept: as configured, else with the user's other caches."""
    if config.dir is not None:
        return Path(config.dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pretrain" / "shards"


class Cache:
    """The files of one folder, shared with all processes that use the same."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self.folder = cache_folder(config)

    def open(self, record: FileRecord, url: str, stop: threading.Event | None = None) -> int:
        """A descriptor of the whole file, fetched from `url` unless it is here; good also after its eviction."""
        stop = stop or threading.Event()
        while True:
            descriptor = self._find(record)
            if descriptor is None:
                descriptor = self._fetch(record, url, stop)
            if descriptor is not None:
                return descriptor
            if stop.wait(SECONDS_BETWEEN_LOOKS):  # another one fetches it
                raise Stopped

    def fetch(self, record: FileRecord, url: str, stop: threading.Event) -> bool:
        """See that the file is here; False if another process is still at it."""
        descriptor = self._find(record)
        if descriptor is None:
            descriptor = self._fetch(record, url, stop)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def has(self, record: FileRecord) -> bool:
        """Whether a file is here, whole; it counts as used now."""
        path = self._path(record)
        with self._faults(), contextlib.suppress(FileNotFoundError):
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(path)
            return path.stat().st_size == record.bytes
        return False

    def check_holds(self, records: Iterable[FileRecord]) -> None:
        """Raise DataError unless all these files can be here at once: a shuffled order needs each of them all the time.

        Fetching them again and again is what would come of a smaller cache.
        """
        sizes = {record.sha256: record.bytes for record in records}
        needed, limit = sum(sizes.values()), self._config.max_bytes
        if needed > limit:
            raise DataError(
                f"data.cache.max_bytes={limit:,}: the shards that this run reads have {needed:,} bytes, and a shuffled "
                "order needs all of them; raise it, or copy the dataset to a folder of each node"
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
                f"data.cache.dir={self.folder}: {missing:,} bytes are still to be fetched, the disk has room for "
                f"{room:,}; free some, or choose a data.cache.dir on another disk"
            )

    def _find(self, record: FileRecord) -> int | None:
        path = self._path(record)
        with self._faults():
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            if os.fstat(descriptor).st_size != record.bytes:  # not as it was when it got its name
                os.close(descriptor)
                path.unlink(missing_ok=True)
                return None
            with contextlib.suppress(OSError):  # another user's
                os.utime(descriptor)  # eviction takes the least recently used
            return descriptor

    def _fetch(self, record: FileRecord, url: str, stop: threading.Event) -> int | None:
        """A descriptor of the file; None if another one is at it."""
        path = self._path(record)
        partial = path.with_name(path.name + PARTIAL)
        with self._faults():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = _lock(partial)
            if file is None:
                return None
            with file:
                try:
                    descriptor = self._find(record)  # the one before may have finished it
                    if descriptor is not None:
                        partial.unlink()
                        return descriptor
                    self._reserve(record, file, stop)
                    fetch(url, record, file, self._config, stop)
                    file.flush()
                    os.fsync(file.fileno())
                    partial.replace(path)
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
                fcntl.flock(file, fcntl.LOCK_UN)
                return os.dup(file.fileno())

    def _reserve(self, record: FileRecord, file: IO[bytes], stop: threading.Event) -> None:
        """Give `file` its length, once others are evicted until that is within the bound."""
        limit = self._config.max_bytes
        if record.bytes > limit:
            raise DataError(f"data.cache.max_bytes={limit:,}: {record.file} alone has {record.bytes:,} bytes; raise it")
        while True:
            with (self.folder / LOCK_FILE).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._evict(limit - record.bytes):
                    file.truncate(record.bytes)
                    return
            if stop.wait(SECONDS_BETWEEN_LOOKS):  # others are being fetched, and can be evicted then
                raise Stopped

    def _evict(self, limit: int) -> bool:
        """Remove the least recently used files until at most `limit` bytes are here; whether that was possible."""
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= limit:
                break
            if _SHA256.fullmatch(path.name):
                path.unlink(missing_ok=True)
                total -= size
            elif path.name.endswith(PARTIAL) and size and (left := _lock(path)) is not None:  # of a killed process
                with left:
                    path.unlink()
                total -= size
        return total <= limit

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of the latest use, length and path of what is here; others come and go meanwhile."""
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
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
                raise DataError(
                    f"data.cache.dir={self.folder}: no space left on the disk; free some, or choose a data.cache.dir "
                    "on another disk"
                ) from None
            raise DataError(f"data.cache.dir={self.folder}: cannot be used ({error}); choose another") from None


def _lock(path: Path) -> IO[bytes] | None:
    """The file at `path`, made if need be and locked; None if another one holds it."""
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
        file.close()  # it was renamed or removed before the lock was had

"""Warnings about a cache that is too small: files fetched again, and waits for room that other processes occupy."""

import logging
import math
import threading
import time
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import FileRecord

logger = logging.getLogger(__name__)

SECONDS_UNTIL_LOGGED = 10.0

SECONDS_BETWEEN_WARNINGS = 600.0

Entry = tuple[int, int, Path]
"""Time of last use, size in bytes, path."""


class Refetches:
    """Counts files that were evicted and must be fetched again, and warns about them from time to time."""

    def __init__(self, place: str, bound: str) -> None:
        self._place, self._bound = place, bound
        self._known: set[str] = set()
        self._count, self._said = 0, -math.inf
        self._lock = threading.Lock()

    def see(self, record: FileRecord) -> None:
        self._known.add(record.sha256)

    def forget(self, record: FileRecord) -> None:
        self._known.discard(record.sha256)

    def miss(self, record: FileRecord) -> None:
        if record.sha256 not in self._known:
            return
        with self._lock:
            now = time.monotonic()
            self._count += 1
            if now - self._said < SECONDS_BETWEEN_WARNINGS:
                return
            self._said = now
        logger.warning(
            "%s: %s was evicted and is fetched again (%d so far); the runs that share this folder together need more "
            "than %s. Raise it, or give each run its own data.cache.dir",
            self._place,
            record.file,
            self._count,
            self._bound,
        )


class WaitForRoom:
    """Waits for space that other processes' fetches occupy: warns once, and raises if those fetches make no
    progress."""

    def __init__(self, what: str, still_seconds: float) -> None:
        self._what, self._still_seconds = what, still_seconds
        self._seen: list[Entry] = []
        self._began = self._moved = time.monotonic()
        self._has_warned = False

    def look(self, in_the_way: list[Entry]) -> None:
        now = time.monotonic()
        if in_the_way != self._seen:
            self._seen, self._moved = in_the_way, now
        num_bytes = sum(size for _, size, _ in in_the_way)
        what = f"{self._what} beside {num_bytes:,} bytes that other processes are fetching, such as {in_the_way[0][2]}"
        still = now - self._moved
        if still > self._still_seconds:
            raise DataError(
                f"{what}, and those fetches made no progress for {still:.0f} s",
                "end those processes",
                "raise data.cache.max_bytes",
            )
        if now - self._began > SECONDS_UNTIL_LOGGED and not self._has_warned:
            self._has_warned = True
            logger.warning("%s; waiting for those fetches", what)

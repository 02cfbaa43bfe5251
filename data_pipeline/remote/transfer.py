"""Reads remote files with retries. A file that still fails after the last retry is a BadFile."""

import hashlib
import logging
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import IO

from data_pipeline.config import CacheConfig
from data_pipeline.errors import BadFile, DataError, Stopped, Unreachable
from data_pipeline.remote.errors import PermanentError, TransientError
from data_pipeline.remote.transport import BLOCK_BYTES, connect
from data_pipeline.shards.manifest import FileRecord
from data_pipeline.storage.urls import redact_url

logger = logging.getLogger(__name__)
MAX_DELAY_SECONDS = 60.0
MAX_DOUBLINGS, MAX_JITTER = 64, 1.5
MAX_SMALL_BYTES = 1 << 28


def max_retry_seconds(config: CacheConfig) -> float:
    """Longest time that a file is retried while no data arrives."""
    return (config.retries + 1) * (config.timeout_seconds + MAX_DELAY_SECONDS * MAX_JITTER)


class Attempts:
    """Counts failures, waits before each retry, and gives up after the last."""

    def __init__(self, url: str, config: CacheConfig, stop: threading.Event) -> None:
        self._url, self._config, self._stop = url, config, stop
        self.failures = 0

    def failed(self, what: str, *hints: str) -> None:
        """Sleep with exponential backoff and jitter. Raises Unreachable if this was the last attempt."""
        self.failures += 1
        if self.failures > self._config.retries:
            raise Unreachable(f"{redact_url(self._url)}: {what}, tried {self.failures} times", *hints)
        growth = 2 ** min(self.failures - 1, MAX_DOUBLINGS)
        delay = min(self._config.retry_seconds * growth, MAX_DELAY_SECONDS) * random.uniform(0.5, MAX_JITTER)
        numbers = self.failures, self._config.retries
        logger.warning("%s: %s; trying again in %.1f s (%d of %d)", redact_url(self._url), what, delay, *numbers)
        if self._stop.wait(delay):
            raise Stopped


def blocks(
    url: str,
    config: CacheConfig,
    *,
    start: int = 0,
    size: int | None = None,
    version: str | None = None,
    stop: threading.Event | None = None,
) -> Iterator[bytes]:
    """Yields the bytes from `start` to the end, resuming after broken connections.

    Raises DataError if the file cannot be read, does not have `size` bytes, or has another `version`, and Stopped soon
    after `stop` is set.
    """
    stop = stop or threading.Event()
    attempts, position = Attempts(url, config, stop), start
    while size is None or position < size:
        began_at = position
        try:
            with closing(connect(url, position, config.timeout_seconds)) as stream:
                size = stream.size if size is None else size
                _check_version(url, stream.version, version)
                if stream.size not in (None, size):
                    raise TransientError(f"has {stream.size:,} bytes, must have {size:,}")
                passed_over = position - stream.start
                if passed_over:
                    logger.warning(
                        "%s: cannot be read from an offset: its first %d bytes are read again",
                        redact_url(url),
                        position,
                    )
                while block := stream.read():
                    if stop.is_set():
                        raise Stopped
                    if version is not None:
                        _check_version(url, stream.version_now(), version)
                    block, passed_over = block[passed_over:], max(0, passed_over - len(block))
                    if size is not None and position + len(block) > size:
                        raise TransientError(f"gives more than its {size:,} bytes")
                    position += len(block)
                    if block:
                        yield block
                if size is None or position == size:
                    return
                raise TransientError(f"ended after {position:,} of {size:,} bytes")
        except PermanentError as error:
            raise BadFile(
                f"{redact_url(url)}: cannot be read: {error}", "check the address and its access rights"
            ) from None
        except TransientError as error:
            if position - began_at >= BLOCK_BYTES:
                attempts.failures = 0  # it makes progress
            attempts.failed(
                f"cannot be read: {error}",
                "check the file and the network",
                "raise data.cache.retries or data.cache.timeout_seconds",
            )


def _check_version(url: str, found: str | None, wanted: str | None) -> None:
    if None not in (found, wanted) and found != wanted:
        raise DataError(f"{redact_url(url)}: was changed while it was read", "run the same command again")


def fetch(url: str, record: FileRecord, file: IO[bytes], config: CacheConfig, stop: threading.Event) -> None:
    """Write a dataset file into `file`, checking its length and checksum."""
    attempts = Attempts(url, config, stop)
    while True:
        digest = hashlib.sha256()
        file.seek(0)
        for block in blocks(url, config, size=record.bytes, stop=stop):
            digest.update(block)
            file.write(block)
        if digest.hexdigest() == record.sha256:
            return
        attempts.failed(
            "its content differs from what `prepare` wrote (its sha256 does not match)",
            "restore the file there",
            "prepare again",
        )


def read_small(url: str, config: CacheConfig) -> bytes:
    """Read a whole file into memory; raises DataError if it has more than MAX_SMALL_BYTES."""
    content = bytearray()
    for block in blocks(url, config):
        content += block
        if len(content) > MAX_SMALL_BYTES:
            raise DataError(
                f"{redact_url(url)}: has more than {MAX_SMALL_BYTES:,} bytes", "check that this is the right file"
            )
    return bytes(content)

"""A remote file as a Python file object: prefetches when read in order, and supports seeking."""

import io
import threading
from collections.abc import Generator
from typing import BinaryIO

from data_pipeline.config import CacheConfig
from data_pipeline.prefetch import prefetch
from data_pipeline.remote.transfer import blocks

BLOCKS_AHEAD = 4
BUFFER_BYTES = 1 << 18
SKIP_BYTES = 4 << 20
"""Reading past this many bytes is faster than starting a new transfer after them."""


def open_remote(url: str, size: int, version: str | None, config: CacheConfig) -> BinaryIO:
    """Open the file if it still has this size and version. Raises DataError if not, or if it cannot be read."""
    return io.BufferedReader(_RemoteFile(url, size, version, config), BUFFER_BYTES)


class _RemoteFile(io.RawIOBase):
    def __init__(self, url: str, size: int, version: str | None, config: CacheConfig) -> None:
        self._url, self._size, self._version, self._config = url, size, version, config
        self._wanted = 0
        """Position of the reader."""
        self._position = 0
        """Position of the transfer: the first byte in `_left`."""
        self._left = memoryview(b"")
        self._transfer: Generator[bytes, None, None] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._wanted

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._wanted, io.SEEK_END: self._size}[whence]
        self._wanted = max(0, base + offset)
        return self._wanted

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._wanted >= self._size:
            return 0
        if self._transfer is None or not self._position <= self._wanted <= self._position + SKIP_BYTES:
            self._begin_transfer()
        assert self._transfer is not None
        while self._wanted >= self._position + len(self._left):
            self._position += len(self._left)
            self._left = memoryview(next(self._transfer))
        start = self._wanted - self._position
        block = self._left[start : start + len(buffer)]
        buffer[: len(block)] = block
        self._wanted += len(block)
        self._left, self._position = self._left[start + len(block) :], self._wanted
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._end_transfer()
        super().close()

    def _begin_transfer(self) -> None:
        self._end_transfer()
        stop = threading.Event()
        source = blocks(self._url, self._config, start=self._wanted, size=self._size, version=self._version, stop=stop)
        self._transfer, self._position = prefetch(source, stop, BLOCKS_AHEAD), self._wanted

    def _end_transfer(self) -> None:
        if self._transfer is not None:
            self._transfer.close()
        self._transfer, self._left = None, memoryview(b"")

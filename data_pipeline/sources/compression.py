"""Decompresses gzip and zstd while reading. A truncated or damaged file is an error, never a shorter text."""

import codecs
import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

from data_pipeline.errors import DataError
from data_pipeline.storage.file_names import compression_of

REPLACE = ("fetch the file again", "remove it from the inputs")
CHUNK_BYTES = 1 << 18
ZSTD_PART_BYTES = 1 << 10
"""Input for one call of the decompressor, which returns all of its output at once. Four bytes may expand to a block of
128 KiB, so this limits the output to 32 MiB; a whole chunk could give 8 GiB."""
GZIP_PART_BYTES = 1 << 14
"""The same for gzip, which expands at most 1,032 times: 16 MiB."""
BYTE_ORDER_MARK = codecs.BOM_UTF8
"""U+FEFF at the beginning of a file. It marks the encoding and is not part of the text."""


class ByteReader:
    """Reads a file, decompressing it if its name says so. `name` is also used in messages."""

    def __init__(self, raw: BinaryIO, name: str) -> None:
        self._raw = raw
        self._name = name
        compression = compression_of(name)
        self._stream: BinaryIO | _Frames = raw
        if compression == "gzip":
            self._stream = _Frames(raw, lambda: zlib.decompressobj(wbits=31), GZIP_PART_BYTES, padding=b"\0")
        elif compression == "zstd":
            self._stream = _Frames(raw, _zstd_frame, ZSTD_PART_BYTES)
        self._buffered = io.BufferedReader(_Raw(self._checked_read), CHUNK_BYTES)

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or fewer at the end. Allocates no more than it reads."""
        content = io.BytesIO()
        while size > 0 and (block := self._buffered.read(min(size, CHUNK_BYTES))):
            size -= content.write(block)
        return content.getvalue()

    def peek(self) -> bytes:
        """Some of the next bytes, without consuming them; b"" at the end of the file."""
        return self._buffered.peek(1)

    def readline(self, max_bytes: int) -> bytes:
        """One line with its line end, or its first `max_bytes` bytes; b"" at the end of the file."""
        return self._buffered.readline(max_bytes)

    def compressed_position(self) -> int:
        """Bytes read from disk so far, for progress."""
        return self._raw.tell()

    def _checked_read(self, size: int) -> bytes | bytearray:
        try:
            block = self._stream.read(size)
            if not block and self._stream is not self._raw and self._raw.tell() == 0:
                raise EOFError
            return block
        except EOFError:
            raise DataError(f"{self._name}: compressed file is truncated", *REPLACE) from None
        except (zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"{self._name}: compressed file is damaged ({error})", *REPLACE) from None
        except OSError as error:
            raise DataError(f"{self._name}: cannot be read ({error.strerror})") from None


class _Raw(io.RawIOBase):
    """The minimum that io.BufferedReader needs of a stream."""

    def __init__(self, read: Callable[[int], bytes | bytearray]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = self._read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class _Frames:
    """Concatenated zstd frames, or gzip members, as one text.

    Each may have been a separate file, so a byte order mark at its beginning is skipped. This needs the frame borders,
    which the readers of gzip and zstandard do not report; zstandard's reader also ends without an error in the middle
    of a frame.
    """

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], Any], part_bytes: int, padding: bytes = b"") -> None:
        """`new_frame` creates a decompressor for one frame. Bytes of `padding` may follow a frame, but not come
        first."""
        self._raw = raw
        self._new_frame, self._part_bytes, self._padding = new_frame, part_bytes, padding
        self._frame: Any = None
        self._is_first = True
        """True until the first frame has ended."""
        self._head: bytes | None = None
        """First bytes of the frame, until there are enough to recognize a byte order mark."""
        self._output = bytearray()
        self._input = memoryview(b"")

    def read(self, size: int) -> bytearray:
        while len(self._output) < size and self._has_input():
            if self._frame is None:
                self._frame, self._head = self._new_frame(), b""
            part = self._input[: self._part_bytes]
            self._output += self._without_mark(self._frame.decompress(part))
            num_used = len(part)
            if self._frame.eof:
                num_used -= len(self._frame.unused_data)
                self._frame, self._is_first = None, False
            self._input = self._input[num_used:]
        block = self._output[:size]
        del self._output[:size]
        return block

    def _without_mark(self, content: bytes) -> bytes:
        if self._head is None:
            return content
        self._head += content
        if len(self._head) < len(BYTE_ORDER_MARK) and not self._frame.eof:
            return b""
        content, self._head = self._head.removeprefix(BYTE_ORDER_MARK), None
        return content

    def _has_input(self) -> bool:
        may_be_padding = self._frame is None and not self._is_first
        while self._fill() and may_be_padding and self._input[:1] == self._padding:
            self._input = memoryview(self._input.tobytes().lstrip(self._padding))
        return len(self._input) > 0

    def _fill(self) -> bool:
        if not self._input:
            self._input = memoryview(self._raw.read(CHUNK_BYTES))
            if not self._input and self._frame is not None:
                raise EOFError
        return len(self._input) > 0


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

"""Bytes of a file, gzip and zstd undone on the way; a cut or damaged file is an error, never a short text."""

import codecs
import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

from data_pipeline.errors import DataError
from data_pipeline.storage.file_names import compression_of

CHUNK_BYTES = 1 << 18
ZSTD_PART_BYTES = 1 << 10
"""Given to the decompressor at once, which returns all that comes of it: four bytes may stand for a block of 128 KiB,
so at most 32 MiB, where a whole chunk may be 8 GiB."""
GZIP_PART_BYTES = 1 << 14
"""The same for gzip, which makes at most 1,032 bytes of one: 16 MiB."""
BYTE_ORDER_MARK = codecs.BOM_UTF8
"""U+FEFF at the beginning of a file: it names the encoding, and is no character of the text."""


class ByteReader:
    """Reads a file that may be compressed, as `name` tells, which is also for messages."""

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
        """At most `size` bytes, fewer only at the end; memory is taken for what there is."""
        content = io.BytesIO()
        while size > 0 and (block := self._buffered.read(min(size, CHUNK_BYTES))):
            size -= content.write(block)
        return content.getvalue()

    def peek(self) -> bytes:
        """Some of the bytes that come next, which stay to be read; b"" at the end of the file."""
        return self._buffered.peek(1)

    def readline(self, max_bytes: int) -> bytes:
        """One line with its end, or as much of it; b"" at the end of the file."""
        return self._buffered.readline(max_bytes)

    def compressed_position(self) -> int:
        """Bytes taken from the disk so far, for progress."""
        return self._raw.tell()

    def _checked_read(self, size: int) -> bytes | bytearray:
        try:
            block = self._stream.read(size)
            if not block and self._stream is not self._raw and self._raw.tell() == 0:
                raise EOFError
            return block
        except EOFError:
            raise DataError(f"{self._name}: compressed file is cut short; fetch it again or leave it out") from None
        except (zlib.error, zstandard.ZstdError) as error:
            raise DataError(
                f"{self._name}: compressed file is damaged ({error}); fetch it again or leave it out"
            ) from None
        except OSError as error:
            raise DataError(f"{self._name}: cannot be read ({error.strerror})") from None


class _Raw(io.RawIOBase):
    """The least that io.BufferedReader asks of a stream."""

    def __init__(self, read: Callable[[int], bytes | bytearray]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = self._read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class _Frames:
    """The frames of zstd, or members of gzip, one after another, as one text.

    Each may have been a file of its own, so a byte order mark at its beginning is passed over. The readers of gzip and
    zstandard do not say where one begins, and zstandard's ends without an error in the middle of a frame.
    """

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], Any], part_bytes: int, padding: bytes = b"") -> None:
        """`new_frame` makes a decompressor of one frame; bytes of `padding` may follow a frame, and not come first."""
        self._raw = raw
        self._new_frame, self._part_bytes, self._padding = new_frame, part_bytes, padding
        self._frame: Any = None
        self._is_first = True
        """Whether no frame has ended yet."""
        self._head: bytes | None = None
        """Of the frame, until it is long enough to be a byte order mark."""
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

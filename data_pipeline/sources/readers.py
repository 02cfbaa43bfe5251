"""Reads the documents of one file: JSON lines hold one each; other files are text, one document unless too long."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data_pipeline.document import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.compression import BYTE_ORDER_MARK, CHUNK_BYTES, ByteReader
from data_pipeline.sources.json_object import kind_of, parse_json

MAX_LINE_BYTES = 1 << 28
"""Far longer than any document. Limits memory if a line never ends."""


OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # begins like that of UTF-16
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class TextKey(NamedTuple):
    """The key or column that holds the text."""

    name: str
    setting: str = "data.text_key"
    """The setting that defines it, for messages."""


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a document that could not be read. The caller stops, or counts it."""

    reason: str
    """A short fixed name, for counting."""
    source: str
    """The file, and its line or row."""
    problem: str
    hint: str = ""
    """A description of the problem."""


def read_text(reader: ByteReader, name: str, max_bytes: int) -> Iterator[Document | Unreadable]:
    """The whole file, or parts of at most `max_bytes` that end at a line end if there is one.

    A byte order mark at the beginning of a line is skipped: files may have been concatenated.
    """
    if (other := _other_encoding(reader, name)) is not None:
        yield other
        return
    start = 0
    rest = b""
    begins_line = True
    while True:
        block = rest + reader.read(max_bytes + 1 - len(rest))
        if not block and start:
            return
        end = len(block) if len(block) <= max_bytes else _cut_place(block, max_bytes)
        piece, rest = block[:end], block[end:]
        source = f"{name}@{start}" if start else name
        try:
            text = piece.decode()
            if "\ufeff" in text:  # fast for ASCII, unlike searching for its bytes
                piece = _without_marks(piece, begins_line)
                text = piece.decode()
            yield Document(text, source, len(piece), ends_inside_line=bool(rest) and not block.endswith(b"\n", 0, end))
        except UnicodeDecodeError as error:
            yield Unreadable("not_utf8", name, _not_utf8(error, start))
        begins_line = block.endswith(b"\n", 0, end)
        start += end
        if not end:
            return  # an empty file is one empty document


def _without_marks(piece: bytes, begins_line: bool) -> bytes:
    if begins_line:
        piece = piece.removeprefix(BYTE_ORDER_MARK)
    return piece.replace(b"\n" + BYTE_ORDER_MARK, b"\n")


def _other_encoding(reader: ByteReader, name: str) -> Unreadable | None:
    """The file as one unreadable document, if its byte order mark is not that of UTF-8."""
    head = reader.peek()
    encoding = next((encoding for mark, encoding in OTHER_MARKS if head.startswith(mark)), None)
    if encoding is None:
        return None
    return Unreadable(
        "not_utf8",
        name,
        f"is {encoding}, as its first bytes say, and must be UTF-8",
        f"convert the file: iconv -f {encoding} -t UTF-8",
    )


def _cut_place(block: bytes, limit: int) -> int:
    newline = block.rfind(b"\n", 0, limit)
    if newline >= 0:
        return newline + 1
    for place in range(limit, max(limit - 4, 0), -1):
        if block[place] & 0xC0 != 0x80:  # not inside a character
            return place
    return limit


def read_jsonl(
    reader: ByteReader, name: str, text_key: TextKey, first: int = 0, end: int | None = None
) -> Iterator[Document | Unreadable]:
    """The text of each line that begins at byte `first` or later and before `end`. Blank lines are skipped.

    If `first` is above 0, the reader must be at the byte before it, which shows whether a line begins at `first`. A
    byte order mark before a line is skipped: files may have been concatenated.
    """
    if not first and (other := _other_encoding(reader, name)) is not None:
        yield other
        return
    number = 0
    start = _pass_line(reader, first - 1, end) if first else 0
    while end is None or start < end:
        line = reader.readline(MAX_LINE_BYTES)
        if not line:
            return
        number += 1
        where = f"{name}: line at byte {start}" if first else f"{name}:{number}"
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            yield Unreadable("endless_line", where, f"line does not end within {MAX_LINE_BYTES:,} bytes")
            start = _pass_line(reader, start + len(line), end)
            continue
        content = line.removeprefix(BYTE_ORDER_MARK)
        if content and not content.isspace():
            yield _parse_line(content, where, start + len(line) - len(content), text_key)
        start += len(line)


def _pass_line(reader: ByteReader, start: int, end: int | None) -> int:
    """The start of the next line if it is before `end`, else any position at or after `end`."""
    while end is None or start < end:
        part = reader.readline(CHUNK_BYTES)
        start += len(part)
        if not part or part.endswith(b"\n"):
            break
    return start


def _parse_line(line: bytes, where: str, start: int, text_key: TextKey) -> Document | Unreadable:
    try:
        record = parse_json(line.decode())
    except UnicodeDecodeError as error:
        return Unreadable("not_utf8", where, _not_utf8(error, start))
    except ValueError as error:
        return Unreadable("broken_json", where, f"not a JSON object ({error}), {_RULE}", _JSON_HINT)
    if not isinstance(record, dict):
        return Unreadable("broken_json", where, f"not a JSON object but {kind_of(record)}, {_RULE}", _JSON_HINT)
    if text_key.name not in record:
        return Unreadable(
            "no_text", where, f"has no key {text_key.name!r} (it has {sorted(record)[:8]})", f"set {text_key.setting}"
        )
    text = record[text_key.name]
    if not isinstance(text, str):
        return Unreadable("no_text", where, f"{text_key.name!r} is {kind_of(text)}, but must be a string")
    try:
        return Document(text, where, len(text) if text.isascii() else len(text.encode()))
    except UnicodeEncodeError as error:
        what = f"lone surrogate ({text[error.start]!r}) at character {error.start}"
        return Unreadable("not_utf8", where, f"not UTF-8: {text_key.name!r} has a {what}")


def _not_utf8(error: UnicodeDecodeError, start: int) -> str:
    return f"not UTF-8 at byte {start + error.start} (0x{error.object[error.start]:02x}, {error.reason})"


_RULE = "as each line of a .jsonl, .ndjson or .json file must be"
_JSON_HINT = "convert the file with `jq -c`, or rename it to .txt if it is plain text"


def fault(unreadable: Unreadable) -> DataError:
    """The error that stops the run at an unreadable document."""
    return DataError(
        f"{unreadable.source}: {unreadable.problem}",
        unreadable.hint or "repair it",
        "set data.encoding_errors=skip to drop such documents",
    )

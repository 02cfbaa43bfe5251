"""Documents of one file: JSON lines hold one each; any other file is text, and one document unless too long."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data_pipeline.document import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.compression import CHUNK_BYTES, ByteReader

LONGEST_LINE_BYTES = 1 << 28
"""Far more than a document has; what never ends must not fill the memory."""


class TextKey(NamedTuple):
    """The key or column that holds the text."""

    name: str
    setting: str = "data.text_key"
    """Which says so, for messages."""


@dataclass(frozen=True)
class Unreadable:
    """What stands where a document could not be made: the caller stops or counts it."""

    reason: str
    """Short and fixed, for counting."""
    source: str
    """Where it stands: the file, and its line or row."""
    problem: str
    """What exactly is wrong."""


def read_text(reader: ByteReader, name: str, max_bytes: int) -> Iterator[Document | Unreadable]:
    """The whole file, or pieces of at most `max_bytes` that end where a line does if there is one."""
    start = 0
    rest = b""
    while True:
        block = rest + reader.read(max_bytes + 1 - len(rest))
        if not block and start:
            return
        end = len(block) if len(block) <= max_bytes else _cut_place(block, max_bytes)
        piece, rest = block[:end], block[end:]
        source = f"{name}@{start}" if start else name
        try:
            yield Document(piece.decode(), source, len(piece))
        except UnicodeDecodeError as error:
            yield Unreadable("not_utf8", name, _not_utf8(error, start))
        start += end
        if not end:
            return  # an empty file: one empty document


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
    """The text of each line that begins at byte `first` or later and before `end`; blank lines are passed over.

    A reader with a `first` above 0 must stand on the byte before it: only that tells whether a line begins there.
    """
    number = 0
    start = _pass_line(reader, first - 1, end) if first else 0
    while end is None or start < end:
        line = reader.readline(LONGEST_LINE_BYTES)
        if not line:
            return
        number += 1
        where = f"{name}: line at byte {start}" if first else f"{name}:{number}"
        if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            yield Unreadable("endless_line", where, f"line does not end within {LONGEST_LINE_BYTES:,} bytes")
            start = _pass_line(reader, start + len(line), end)
            continue
        if not line.isspace():
            yield _parse_line(line, where, start, text_key)
        start += len(line)


def _pass_line(reader: ByteReader, start: int, end: int | None) -> int:
    """Where the next line begins, if that is before `end`; else some place from there on."""
    while end is None or start < end:
        part = reader.readline(CHUNK_BYTES)
        start += len(part)
        if not part or part.endswith(b"\n"):
            break
    return start


def _parse_line(line: bytes, where: str, start: int, text_key: TextKey) -> Document | Unreadable:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Unreadable("not_utf8", where, _not_utf8(error, start))
    except (ValueError, RecursionError) as error:
        return Unreadable("broken_json", where, f"not a JSON object ({error}), {_RULE}")
    if not isinstance(record, dict):
        return Unreadable("broken_json", where, f"not a JSON object but {type(record).__name__}, {_RULE}")
    if text_key.name not in record:
        return Unreadable(
            "no_text", where, f"has no key {text_key.name!r} (it has {sorted(record)[:8]}); set {text_key.setting}"
        )
    text = record[text_key.name]
    if not isinstance(text, str):
        return Unreadable("no_text", where, f"{text_key.name!r} is {type(text).__name__}, must be a string")
    try:
        return Document(text, where, len(text) if text.isascii() else len(text.encode()))
    except UnicodeEncodeError as error:
        what = f"lone surrogate ({text[error.start]!r}) at character {error.start}"
        return Unreadable("not_utf8", where, f"not UTF-8: {text_key.name!r} has a {what}")


def _not_utf8(error: UnicodeDecodeError, start: int) -> str:
    return f"not UTF-8 at byte {start + error.start} (0x{error.object[error.start]:02x}, {error.reason})"


_RULE = "as each line of a .jsonl, .ndjson or .json file must be (`jq -c` writes such; another suffix makes it text)"


def fault(unreadable: Unreadable) -> DataError:
    """The error that stops the run at a document that cannot be read."""
    remedy = "mend it, or leave such documents out with data.encoding_errors=skip"
    return DataError(f"{unreadable.source}: {unreadable.problem}; {remedy}")

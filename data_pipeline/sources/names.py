"""What the name of a file says: whether a search takes it, how it is compressed, how its documents are read.

Capital letters say nothing: A.JSONL.GZ is read as a.jsonl.gz.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Literal

Compression = Literal["gzip", "zstd"]
Format = Literal["text", "json_lines", "parquet"]

COMPRESSIONS: Mapping[str, Compression] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
NOT_READ: Mapping[str, str] = {
    **dict.fromkeys((".bz2", ".xz", ".lzma", ".lz4", ".br", ".z"), "is compressed in a way that is not read here"),
    **dict.fromkeys((".tar", ".tgz", ".zip", ".7z", ".rar"), "is an archive, whose names and gaps are no text"),
}
"""What no reading as text makes sense of."""
FORMATS: Mapping[str, Format] = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json_lines",  # what C4 and many others call it; one that holds something else is an error, not text
    ".parquet": "parquet",
}


def is_included(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns of `data.include` fits the name of a file in a folder."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def compression_of(name: str) -> Compression | None:
    return COMPRESSIONS.get(_suffix(name, COMPRESSIONS))


def format_of(name: str) -> Format:
    """How the documents of a file are read once it is unpacked: as text, unless its suffix tells otherwise."""
    plain = name.lower().removesuffix(_suffix(name, COMPRESSIONS))
    return FORMATS.get(_suffix(plain, FORMATS), "text")


def not_read(name: str) -> str | None:
    """Why a file of this name is not read, if so."""
    plain = name.lower().removesuffix(_suffix(name, COMPRESSIONS))
    return NOT_READ.get(_suffix(plain, NOT_READ))


def printable(text: str) -> str:
    """A text with names in it, as UTF-8 can hold it: bytes of theirs that are none are written as \\udcff."""
    return text.encode(errors="backslashreplace").decode()


def _suffix(name: str, known: Iterable[str]) -> str:
    return next((suffix for suffix in known if name.lower().endswith(suffix)), "")

"""Recognizes from a file's name whether it is read, how it is compressed and which format it has.

Names are compared case-insensitively: A.JSONL.GZ is read like a.jsonl.gz.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Literal

Compression = Literal["gzip", "zstd"]
Format = Literal["text", "json_lines", "parquet"]

COMPRESSIONS: Mapping[str, Compression] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
NOT_READ: Mapping[str, str] = {
    **dict.fromkeys((".bz2", ".xz", ".lzma", ".lz4", ".br", ".z"), "has an unsupported compression"),
    **dict.fromkeys((".tar", ".tgz", ".zip", ".7z", ".rar"), "is an archive, which cannot be read as text"),
}
"""Suffixes of files that cannot be read as text, with the reason."""
FORMATS: Mapping[str, Format] = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json_lines",  # as in C4; a file that is not JSON lines is an error, not text
    ".parquet": "parquet",
}
CARDS = ("readme", "dataset_card", "datacard")
"""Names, up to the first dot, of files that describe a dataset."""


def choose(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split the files found in a folder into those to read and those to ignore, both sorted.

    Ignored are hidden files, which include temporary copies of editors and operating systems, and files that describe
    the data, such as a README beside JSON lines or Parquet. `paths` are relative to the folder, with / as separator.
    """
    in_order = sorted(paths, key=lambda path: path.split("/"))
    chosen = [path for path in in_order if not any(part.startswith(".") for part in path.split("/"))]
    if any(format_of(path) != "text" for path in chosen):
        chosen = [path for path in chosen if format_of(path) != "text" or not _is_card(path)]
    kept = set(chosen)
    return chosen, [path for path in in_order if path not in kept]


def _is_card(path: str) -> bool:
    return path.lower().rpartition("/")[2].partition(".")[0] in CARDS


def is_included(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file name in a folder matches one of the patterns of `data.include`."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def compression_of(name: str) -> Compression | None:
    return COMPRESSIONS.get(_suffix(name, COMPRESSIONS))


def format_of(name: str) -> Format:
    """The format of a file after decompression: text, unless its suffix says otherwise."""
    plain = name.lower().removesuffix(_suffix(name, COMPRESSIONS))
    return FORMATS.get(_suffix(plain, FORMATS), "text")


def not_read(name: str) -> str | None:
    """Why a file with this name cannot be read, or None if it can."""
    plain = name.lower().removesuffix(_suffix(name, COMPRESSIONS))
    return NOT_READ.get(_suffix(plain, NOT_READ))


def printable(text: str) -> str:
    """A text that can be encoded as UTF-8. Bytes of file names that are not UTF-8 are escaped, as in \\udcff."""
    return text.encode(errors="backslashreplace").decode()


def _suffix(name: str, known: Iterable[str]) -> str:
    return next((suffix for suffix in known if name.lower().endswith(suffix)), "")

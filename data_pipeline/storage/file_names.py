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
CARDS = ("readme", "dataset_card", "datacard")
"""Names, up to their first dot, of texts about the data that lie beside it."""


def choose(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of the files found in a folder that hold its text, and those that are passed over, both sorted.

    Passed over is what is hidden, as are copies that editors and operating systems keep, and what describes the data:
    a README beside JSON lines or Parquet. `paths` begin in the folder, with / between their parts.
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

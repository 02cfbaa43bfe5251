"""Where `prepare` writes: the dataset's folder, and beside it, until it is whole, what becomes of it."""

import os
import re
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.storage.urls import is_url, shown

_OF_A_DATASET = re.compile(
    r"manifest\.json|inputs\.json|prepare_report\.html|tokenizer\.[a-z.]+|(train|validation)(-\d+\.tar|\.index\.npy)"
)


def folder_to_write(path: str) -> Path:
    """Of `data.path`, a link to a folder followed; DataError where it names none that could be made."""
    if is_url(path):
        raise DataError(
            f"data.path={shown(path)}: `prepare` writes to a disk; give a folder, copy it there when it is done"
        )
    if path.startswith("~"):
        raise DataError(
            f"data.path={path}: only a shell knows ~; write the whole path, as in data.path=$HOME/{path[2:]}"
        )
    folder = Path(path)
    if folder.name in ("", ".."):
        raise DataError(f"data.path={path!r}: names no folder of its own; give one, as in data.path=data/my_corpus")
    real = _real(folder)
    return folder if real == _real(folder.parent) / folder.name else real


def staged(folder: Path) -> Path:
    """Where the dataset is built."""
    return folder.with_name(folder.name + ".partial")


def replaced(folder: Path) -> Path:
    """Where the one before waits until the new one is in its place."""
    return folder.with_name(folder.name + ".replaced")


def work(folder: Path) -> Path:
    """Where finished pieces are."""
    return folder.with_name(folder.name + ".work")


def lock(folder: Path) -> Path:
    """The file that keeps other processes out of one of these."""
    return folder.with_name(folder.name + ".lock")


def own(path: str) -> frozenset[Path]:
    """All of these for a `data.path`, without links: none of them is text to read."""
    real = _real(Path(path))
    if not real.name:
        return frozenset()
    return frozenset((real, staged(real), replaced(real), work(real), lock(staged(real)), lock(work(real))))


def refuse_others_files(folder: Path) -> None:
    """DataError where a dataset's folder holds what `prepare` did not write, which would go with it."""
    others = sorted(entry.name for entry in folder.iterdir() if not _OF_A_DATASET.fullmatch(entry.name))
    if others:
        raise DataError(
            f"data.path={folder}: cannot be replaced, as it holds what is not of a dataset "
            f"({', '.join(others[:5])}{', ...' if others[5:] else ''}); move that away, or choose another data.path"
        )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # as `resolve`, which raises where it may not look

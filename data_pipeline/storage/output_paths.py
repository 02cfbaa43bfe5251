"""The folders that `prepare` writes: the dataset and, until it is complete, temporary folders beside it."""

import os
import re
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.storage.urls import is_url, redact_url

_OF_A_DATASET = re.compile(
    r"manifest\.json|inputs\.json|prepare_report\.html|tokenizer\.[a-z.]+|(train|validation)(-\d+\.tar|\.index\.npy)"
)


def folder_to_write(path: str) -> Path:
    """The folder that `data.path` names, with a link resolved. Raises DataError if it cannot be created."""
    if is_url(path):
        raise DataError(
            f"data.path={redact_url(path)}: `prepare` can only write to a disk",
            "give a local folder, and copy it there afterwards",
        )
    if path.startswith("~"):
        raise DataError(
            f"data.path={path}: only a shell expands ~", f"write the whole path, as in data.path=$HOME/{path[2:]}"
        )
    folder = Path(path)
    if folder.name in ("", ".."):
        raise DataError(
            f"data.path={path!r}: does not name a folder of its own", "give one, as in data.path=data/my_corpus"
        )
    real = _real(folder)
    return folder if real == _real(folder.parent) / folder.name else real


def staged(folder: Path) -> Path:
    """The folder in which the dataset is built."""
    return folder.with_name(folder.name + ".partial")


def replaced(folder: Path) -> Path:
    """The folder that holds the previous dataset until the new one has replaced it."""
    return folder.with_name(folder.name + ".replaced")


def task_store(folder: Path) -> Path:
    """The folder that holds the results of finished tasks."""
    return folder.with_name(folder.name + ".work")


def lock(folder: Path) -> Path:
    """The lock file of one of these folders."""
    return folder.with_name(folder.name + ".lock")


def own_paths(path: str) -> frozenset[Path]:
    """All of these for a `data.path`, with links resolved. Inputs must not include any of them."""
    real = _real(Path(path))
    if not real.name:
        return frozenset()
    return frozenset((real, staged(real), replaced(real), task_store(real), lock(staged(real)), lock(task_store(real))))


def check_only_dataset_files(folder: Path) -> None:
    """Raise DataError if the folder holds files that `prepare` did not write, because replacing it would delete
    them."""
    others = sorted(entry.name for entry in folder.iterdir() if not _OF_A_DATASET.fullmatch(entry.name))
    if others:
        raise DataError(
            f"data.path={folder}: cannot be replaced, because it holds other files than a dataset "
            f"({', '.join(others[:5])}{', ...' if others[5:] else ''})",
            "move those files away",
            "choose another data.path",
        )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # like `resolve`, which raises if a folder is not readable

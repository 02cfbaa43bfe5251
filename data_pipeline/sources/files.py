"""Which files the inputs name, in an order that does not depend on the machine."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.sources import stdlib


@dataclass(frozen=True)
class InputFile:
    """A file to read."""

    path: Path
    name: str
    """For messages and records: the path as given, or relative to the parent of the folder given."""
    num_bytes: int
    """On the disk, compressed or not."""
    modified_ns: int
    given: str
    """The entry of the inputs that named it."""


def find_files(inputs: Sequence[str], include: Sequence[str]) -> list[InputFile]:
    """Files named directly, and those in folders whose names match a pattern, sorted within each folder."""
    if not inputs:
        raise DataError(
            "data.inputs=[]: names no text; name files or folders, as in data.inputs=[my.txt], or take data=stdlib"
        )
    files: list[InputFile] = []
    for given in inputs:
        if given == stdlib.INPUT:
            files += _in_folder(stdlib.stdlib_folder(), "stdlib", given, include, stdlib.EXCLUDED_FOLDERS)
            continue
        path = Path(given).expanduser()
        if path.is_dir():
            found = list(_in_folder(path, path.resolve().name, given, include, frozenset()))
            if not found:
                raise DataError(
                    f"data.inputs: folder {given} has no file that matches data.include={list(include)}; "
                    "give other patterns, or name files"
                )
            files += found
        elif path.exists():
            files.append(_input_file(path, given, given))
        else:
            raise DataError(f"data.inputs: {given} does not exist; name files, folders or {stdlib.INPUT}")
    return files


def _in_folder(
    folder: Path, name: str, given: str, include: Sequence[str], excluded: frozenset[str]
) -> Iterator[InputFile]:
    relative: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [child for child in folders if child not in excluded]
        relative += [
            (Path(parent) / file).relative_to(folder)
            for file in names
            if any(fnmatch.fnmatchcase(file, pattern) for pattern in include)
        ]
    for path in sorted(relative, key=lambda path: path.parts):
        if (folder / path).is_file():  # not a socket, nor a link to nowhere
            yield _input_file(folder / path, f"{name}/{path.as_posix()}", given)


def _input_file(path: Path, name: str, given: str) -> InputFile:
    status = path.stat()
    return InputFile(path, name, status.st_size, status.st_mtime_ns, given)

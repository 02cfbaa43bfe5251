"""Finds the files that the inputs name, in an order that does not depend on the machine."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError, InputError
from data_pipeline.sources import stdlib
from data_pipeline.storage.file_names import choose, is_included, not_read
from data_pipeline.storage.urls import is_url, redact_url

REMEDIES = ("repair it, or remove it from the folder", "name files and folders one by one")
OnIgnored = Callable[[str, Sequence[str]], None]
"""Called with an entry of the inputs and the ignored files in its folder."""


@dataclass(frozen=True)
class InputFile:
    """An input file, local or remote."""

    location: str
    """Path or URL."""
    name: str
    """For messages and records: the path or URL as given, or relative to the parent of the given folder."""
    num_bytes: int
    """Size on disk, before decompression."""
    version: str | None
    """Changes with the content: the modification time, or the server's version tag."""
    given: str
    """The entry of the inputs that named the file."""
    cache: CacheConfig

    @property
    def identity(self) -> str:
        """Equal as long as the file is unchanged."""
        place = self.location if is_url(self.location) else Path(self.location).resolve()
        return f"{place}\0{self.num_bytes}\0{self.version}"

    @property
    def same_file_key(self) -> str:
        """Equal for paths of the same file, such as links."""
        path = self.location.removeprefix("file://")
        if is_url(path):
            return path
        try:
            status = os.stat(path)  # noqa: PTH116  # quick: there may be a million
        except OSError:
            return path
        return f"{status.st_dev}:{status.st_ino}"

    def has_changed(self) -> bool:
        """Whether a local file has changed. Remote files are checked while they are read."""
        if is_url(self.location):
            return False
        try:
            status = Path(self.location).stat()
        except OSError:
            return True
        return (status.st_size, str(status.st_mtime_ns)) != (self.num_bytes, self.version)

    def open(self) -> BinaryIO:
        """Open the file for reading, with seek. Raises DataError."""
        if is_url(self.location):
            from data_pipeline.remote.file import open_remote

            return open_remote(self.location, self.num_bytes, self.version, self.cache)
        try:
            return Path(self.location).open("rb")
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from None


def find_files(
    inputs: Sequence[str],
    include: Sequence[str],
    cache: CacheConfig,
    excluded: Set[Path] = frozenset(),
    *,
    key: str = "data.inputs",
    on_ignored: OnIgnored = lambda given, paths: None,
) -> list[InputFile]:
    """Files named directly, and those in folders whose names match a pattern, sorted within each folder.

    `cache` says how URLs are read. `excluded` are real paths of folders to ignore. `key` names the setting of the
    inputs in messages. `on_ignored` is called with matching files that are hidden or describe the data.
    """
    if not inputs:
        raise DataError(f"{key}=[]: names no text", f"name files or folders, as in {key}=[my.txt]", "use data=stdlib")
    try:
        return _find(inputs, include, cache, excluded, on_ignored)
    except InputError as error:
        raise DataError(f"{key}: {error.message}", *error.hints) from None


def _find(
    inputs: Sequence[str], include: Sequence[str], cache: CacheConfig, excluded: Set[Path], on_ignored: OnIgnored
) -> list[InputFile]:
    is_excluded = lambda folder: Path(os.path.realpath(folder)) in excluded  # noqa: E731
    files: list[InputFile] = []
    for given in inputs:
        path = Path(os.path.expanduser(given))  # noqa: PTH111  # Path.expanduser raises for an unknown user
        if given == stdlib.INPUT:
            library = stdlib.stdlib_folder()
            files += _in_folder(library, "stdlib", given, include, stdlib.is_excluded, cache, on_ignored)
        elif is_url(given):
            from data_pipeline.remote.listing import list_remote

            named = redact_url(given)
            entries, others = list_remote(given, include, cache)
            on_ignored(named, others)
            files += [InputFile(entry.url, entry.name, entry.size, entry.version, named, cache) for entry in entries]
        elif os.path.isdir(path):  # noqa: PTH112, which is False where it may not look
            files += _in_folder(path, path.resolve().name, given, include, is_excluded, cache, on_ignored)
        else:
            files.append(_input_file(path, given, given, cache))
    for file in files:
        why_not = not_read(file.name)
        if why_not is not None:
            raise InputError(f"{file.name} {why_not}", "unpack it, or compress its files with gzip or zstd")
    _check_no_file_twice(files)
    return files


def _check_no_file_twice(files: Sequence[InputFile]) -> None:
    """Raise InputError if two entries or two names refer to the same file, which would be read twice."""
    first_with: dict[str, InputFile] = {}
    for file in files:
        first = first_with.setdefault(file.same_file_key, file)
        if first is file:
            continue
        if first.given != file.given:
            raise InputError(
                f"{first.given} and {file.given} both name the file {file.location}, which would be read twice",
                "remove one of them",
            )
        if first.location == file.location:
            raise InputError(f"{file.given} is listed twice, and would be read twice", "name it once")
        raise InputError(
            f"{first.name} and {file.name}, in {file.given}, are the same file, through a link",
            "remove one of them from the folder",
            "name files and folders one by one",
        )


def _in_folder(
    folder: Path,
    name: str,
    given: str,
    include: Sequence[str],
    is_excluded: Callable[[Path], bool],
    cache: CacheConfig,
    on_ignored: OnIgnored,
) -> list[InputFile]:
    files = _walk(folder, given, is_excluded)
    chosen, others = choose(path.relative_to(folder).as_posix() for path in files if is_included(path.name, include))
    on_ignored(given, others)
    if not chosen:
        hidden = f" ({len(others)} hidden files are ignored)" if others else ""
        raise InputError(
            f"folder {given} has no file that matches data.include={list(include)}{hidden}",
            "give other patterns",
            "name files",
        )
    return [_input_file(folder / path, f"{name}/{path}", given, cache) for path in chosen]


def _walk(folder: Path, given: str, is_excluded: Callable[[Path], bool]) -> Iterator[Path]:
    """All files, following links. A folder that is unreadable, or is found twice, is an error rather than missing text.

    Hidden folders are exempt, because nothing in them is read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}, in {given}, cannot be read ({error.strerror})", *REMEDIES)

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in seen:
            raise InputError(f"{parent}, in {given}, is found twice, through a link", *REMEDIES)
        seen.add(real)
        folders[:] = [child for child in folders if not is_excluded(Path(parent, child))]
        yield from (Path(parent, name) for name in names)
        for hidden in [child for child in folders if child.startswith(".")]:
            folders.remove(hidden)
            path = Path(parent, hidden)
            if not path.is_symlink():
                yield from (Path(inside, name) for inside, _, there in os.walk(path) for name in there)


def _input_file(path: Path, name: str, given: str, cache: CacheConfig) -> InputFile:
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{name} is a broken link", *REMEDIES) from None
        raise InputError(f"{name} does not exist", f"name files, folders or {stdlib.INPUT}") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})", *REMEDIES) from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is a pipe, a socket or a device", "write its text to a file, and name that")
    return InputFile(str(path), name, status.st_size, str(status.st_mtime_ns), given, cache)

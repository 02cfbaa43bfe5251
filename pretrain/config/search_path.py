"""Folders of the user's own configuration files, given by `--config-dir DIR` and composed together with conf/.

They are carried as an override, Hydra's `hydra.searchpath=[DIR]`, so that the runs of a sweep, jobs and hosts get them
with the other overrides, as absolute paths.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.errors import ConfigError, Problem

CONFIG_DIRS_KEY = "hydra.searchpath"
OPTION = "--config-dir"
PACKAGE_LINE = "# @package _global_"


@dataclass(frozen=True)
class ConfigDirs:
    """The folders in which a group's files are looked for."""

    shipped: Path
    """The folder conf/ of this program; it has the files with the defaults."""
    own: tuple[Path, ...] = ()

    def files(self, group: str) -> list[Path]:
        """The files of a group, by name."""
        found = [path for folder in (self.shipped, *self.own) for path in (folder / group).glob("*.yaml")]
        return sorted(found, key=lambda path: path.name)

    def own_groups(self) -> dict[str, list[str]]:
        """The groups in the user's folders, each with the names of its files there."""
        groups: dict[str, list[str]] = {}
        for folder in self.own:
            for path in _config_files(folder):
                groups.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path.stem)
        return groups

    def hydra_words(self) -> list[str]:
        """The override for Hydra; empty without own folders."""
        return [as_override(self.own)] if self.own else []


def as_override(folders: Iterable[Path]) -> str:
    """The override that adds these folders, made absolute."""
    quoted = ",".join(f'"{_escaped(str(folder.absolute()))}"' for folder in folders)
    return f"{CONFIG_DIRS_KEY}=[{quoted}]"


def _escaped(text: str) -> str:
    """In Hydra's grammar a backslash only needs another one before a quote, and at the end."""
    return re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text)


def with_folders(folders: Sequence[Path], overrides: Sequence[str]) -> list[str]:
    """The overrides with these folders, and those that they name already, as one override at the end."""
    named, rest = split_overrides(overrides)
    return [*rest, as_override([*folders, *named])] if folders or named else rest


def split_overrides(overrides: Sequence[str]) -> tuple[tuple[Path, ...], list[str]]:
    """The user's folders, and the overrides that set keys; raises ConfigError for folders that are not on a disk."""
    folders: list[Path] = []
    rest: list[str] = []
    for override in overrides:
        if override.partition("=")[0].lstrip("+") == CONFIG_DIRS_KEY:
            folders += _folders_of(override)
        else:
            rest.append(override)
    return tuple(dict.fromkeys(folders)), rest


def _folders_of(override: str) -> Iterator[Path]:
    from pretrain.config.overrides import parse

    (parsed,) = parse([override])
    value = parsed.value()
    for text in value if isinstance(value, list) else [value]:
        path = str(text).removeprefix("file://")
        if "://" in path:
            raise ConfigError(
                [Problem(CONFIG_DIRS_KEY, str(text), "must be a folder on a disk", f"write {OPTION} DIR")]
            )
        yield Path(path).absolute()


def as_arguments(overrides: Sequence[str]) -> list[str]:
    """The command line that gives these overrides, with `--config-dir DIR` as people type it."""
    folders, rest = split_overrides(overrides)
    return [argument for folder in folders for argument in (OPTION, str(folder))] + rest


def check_folders(dirs: ConfigDirs) -> None:
    """Raise ConfigError for a folder that is missing or holds no group, and for a file with another one's name.

    Hydra would silently use the first of two files with one name.
    """
    problems: list[Problem | str] = []
    for number, folder in enumerate(dirs.own):
        if not folder.is_dir():
            problems.append(f"{OPTION} {folder}: no such folder")
            continue
        files = list(_config_files(folder))
        if not files:
            example = f"{folder}/model/NAME.yaml"
            problems.append(f"{OPTION} {folder}: has no folder of a group with .yaml files in it, such as {example}")
        for other in (dirs.shipped, *dirs.own[:number]):
            pairs = ((path, other / path.relative_to(folder)) for path in files)
            problems += [_taken(path, first) for path, first in pairs if first.is_file() and not _is_same(path, first)]
    if problems:
        raise ConfigError(problems)


def _taken(path: Path, other: Path) -> str:
    return f"{path}: {path.parent.name}={path.stem} is {other} already; give your file another name"


def _is_same(path: Path, other: Path) -> bool:
    """A copy does no harm."""
    return path.read_bytes() == other.read_bytes()


def _config_files(folder: Path) -> Iterator[Path]:
    """At most two levels down: a large folder, given by mistake, is not searched whole."""
    for pattern in ("*/*.yaml", "*/*/*.yaml"):
        for path in sorted(folder.glob(pattern)):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path

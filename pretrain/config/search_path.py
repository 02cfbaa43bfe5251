"""Folders of the user's own configuration files, given by `--config-dir DIR` and composed together with conf/.

They are carried as an override, Hydra's `hydra.searchpath=[DIR]`, so that the runs of a sweep, jobs and hosts get them
with the other overrides, as absolute paths.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.config.config_dirs import CONFIG_DIRS_KEY, OPTION, ConfigDirs, as_override, config_files
from pretrain.config.errors import ConfigError, Problem

PACKAGE_LINE = "# @package _global_"


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
        files = list(config_files(folder))
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

"""The folders in which configuration files are looked for: conf/ of this program, and the user's own."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIG_DIRS_KEY = "hydra.searchpath"
OPTION = "--config-dir"


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
            for path in config_files(folder):
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


def config_files(folder: Path) -> Iterator[Path]:
    """The YAML files at most two levels down. A large folder that is given by mistake is not searched whole."""
    for pattern in ("*/*.yaml", "*/*/*.yaml"):
        for path in sorted(folder.glob(pattern)):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path

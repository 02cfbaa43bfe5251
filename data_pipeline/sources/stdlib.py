"""The sources of the running Python's standard library: real text on every machine that has Python."""

import sysconfig
from pathlib import Path

INPUT = "stdlib:"
_OF_OTHERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


def stdlib_folder() -> Path:
    """Where the standard library lies, also inside a virtual environment."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_excluded(folder: Path) -> bool:
    """Whether a folder in there holds what is not of the library."""
    return folder.name in _OF_OTHERS

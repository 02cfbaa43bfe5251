"""The source code of Python's standard library: real text that every machine with Python has."""

import sysconfig
from pathlib import Path

INPUT = "stdlib:"
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})


def stdlib_folder() -> Path:
    """The folder of the standard library, even in a virtual environment."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_excluded(folder: Path) -> bool:
    """Whether a subfolder is not part of the library: it holds installed packages or compiled files."""
    return folder.name in _NOT_LIBRARY

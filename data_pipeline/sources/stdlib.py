"""The source code of Python's standard library: real text that every machine with Python has."""

import sysconfig
from pathlib import Path

INPUT = "stdlib:"
_OF_OTHERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


def stdlib_folder() -> Path:
    """The folder of the standard library, also when running in a virtual environment."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_excluded(folder: Path) -> bool:
    """Whether a subfolder does not belong to the library."""
    return folder.name in _OF_OTHERS

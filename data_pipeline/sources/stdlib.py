"""The sources of the running Python's standard library: real text on every machine that has Python."""

import sysconfig
from pathlib import Path

INPUT = "stdlib:"
EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


def stdlib_folder() -> Path:
    """Where the standard library lies, also inside a virtual environment."""
    return Path(sysconfig.get_paths()["stdlib"])

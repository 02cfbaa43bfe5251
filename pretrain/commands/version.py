"""The versions that `pretrain --version` prints, read from package metadata without importing the packages."""

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "deepspeed", "megatron-core")


def version_text() -> str:
    """A line for each, for reports of errors."""
    found = {"pretrain": version_of("pretrain"), "python": platform.python_version()}
    found |= {name: version_of(name) for name in LIBRARIES}
    return "".join(f"{name} {number}\n" for name, number in found.items())


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

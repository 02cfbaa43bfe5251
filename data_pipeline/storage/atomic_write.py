"""Atomic file writes: after a crash, a file has either its old or its new content."""

import os
import secrets
import socket
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to disk and rename it."""
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def partial_of(path: Path) -> Path:
    """A unique name beside `path`. The process ID is not enough: two containers may have the same one."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{secrets.token_hex(8)}.partial")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk. Until then a rename in it is not durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

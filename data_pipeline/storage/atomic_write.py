"""Whole files or none: what is written here is there after a crash, under its name, or not at all."""

import os
import secrets
import socket
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, rename it: a kill leaves the old file or the new one."""
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
    """A name beside `path` that nobody else writes to; processes of two containers may have equal numbers."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{secrets.token_hex(8)}.partial")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: a rename is not durable before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

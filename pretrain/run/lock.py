"""The lock of a run folder: one live process holds it at a time."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from data_pipeline.errors import SYSTEM_FAULTS
from pretrain.config.errors import RunError, RunInUse, RunRefused

LOCK_FILE = "run.lock"


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """Make the folder and keep other processes out of it; raises RunError naming the process that holds it.

    Yields a function that raises RunError if the held folder was moved or deleted: another run may then hold the folder
    of that name. A lock file that was deleted is locked again.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = os.open(folder, os.O_RDONLY)  # while it is open, no other folder gets its inode
        except OSError as error:
            raise _not_writable(folder, error) from None
        stack.callback(os.close, held)
        locks = [stack.enter_context(_take_lock(folder))]  # released with its file, also if the process is killed

        def refuse_another() -> None:
            if not _is_at(held, folder):
                raise RunError(
                    f"run.dir={str(folder)!r}: is not the folder that this run started in: that was moved or deleted",
                    "put it back, or stop this run",
                )
            if not _is_at(locks[-1].fileno(), folder / LOCK_FILE):
                locks.append(stack.enter_context(_take_lock(folder)))

        yield refuse_another


def _take_lock(folder: Path) -> TextIO:
    try:
        lock = (folder / LOCK_FILE).open("a+")
        is_free = _lock(lock)
    except OSError as error:
        raise _not_writable(folder, error) from None
    if not is_free:
        with lock:
            lock.seek(0)
            raise RunInUse(
                f"run.dir={str(folder)!r}: in use by another live process ({_holder(lock.read())})",
                "wait for it, stop it, or choose another run.name or run.dir",
            )
    lock.truncate(0)
    lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    lock.flush()
    return lock


def _not_writable(folder: Path, error: OSError) -> RunError:
    kind = RunRefused if error.errno in SYSTEM_FAULTS else RunError
    return kind(f"run.dir={str(folder)!r}: cannot be written: {error.strerror}", "choose another run.dir")


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file or folder still has that path."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def lock_holder(folder: Path) -> str | None:
    """The live process that holds the folder, as text; None if it is free."""
    try:
        with (folder / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return _holder((folder / LOCK_FILE).read_text(encoding="utf-8"))
    except OSError:
        return None


def _lock(lock: TextIO) -> bool:
    """Try to take the lock, twice: another process may only have checked it for a moment (`lock_holder`)."""
    for seconds in (0.2, 0.0):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(seconds)
    return False


def _holder(text: str) -> str:
    try:
        values: dict[str, Any] = json.loads(text)
        return f"process {values['pid']} on {values['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"

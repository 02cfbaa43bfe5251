"""Workers of one test session share the cores: a test that starts several processes waits until as many are free."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_held = 0
"""Cores that this process holds: a test that asks within its own part waits for nothing."""


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """Hold `count` cores, or all if there are fewer; nothing to wait for outside of a session with several workers."""
    global _held
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if session is None or _held:
        yield
        return
    folder = Path(tempfile.gettempdir(), f"pretrain-cores-{session}")
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as held:
        _take(folder, count, held)
        _held = count
        try:
            yield
        finally:
            _held = 0


def _take(folder: Path, count: int, held: contextlib.ExitStack) -> None:
    """One process at a time takes its locks, so that two never hold half of what each needs."""
    total = len(os.sched_getaffinity(0))
    free = [folder / f"core-{number}" for number in range(total)]
    with (folder / "queue").open("w") as queue:
        fcntl.flock(queue, fcntl.LOCK_EX)
        for _ in range(min(count, total)):
            while not any(_lock(path, free, held) for path in list(free)):
                time.sleep(0.01)


def _lock(path: Path, free: list[Path], held: contextlib.ExitStack) -> bool:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    held.enter_context(file)
    free.remove(path)
    return True

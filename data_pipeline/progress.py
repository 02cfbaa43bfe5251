"""Progress of a pass over many bytes: a live bar on a terminal, otherwise a log line every few seconds."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def show_progress(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number of bytes processed so far."""
    if not sys.stderr.isatty():
        yield _plain_lines(title, total_bytes)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda done: bar.update(task, completed=done)


def _plain_lines(title: str, total_bytes: int) -> Callable[[int], None]:
    start = last = time.monotonic()

    def update(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = done / (now - start)
        left = f"{(total_bytes - done) / rate:.0f} s" if rate else "some time"
        logger.info("%s: %.1f of %.1f MB, %.2f MB/s, %s left", title, done / 1e6, total_bytes / 1e6, rate / 1e6, left)

    return update

"""Progress over the parts of a measurement: a bar on a terminal, and elsewhere a line for each part."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

Show = Callable[[str], None]
"""Takes the name of the part that begins."""


@contextmanager
def show_parts(title: str, total: int) -> Iterator[Show]:
    """Yields a function that is called as each of `total` parts begins."""
    began, number = time.monotonic(), 0

    def plain(name: str) -> None:
        nonlocal number
        number += 1
        log.info("%s: %d of %d, after %.0f s: %s", title, number, total, time.monotonic() - began, name)

    if not sys.stderr.isatty():
        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def live(name: str) -> None:
            nonlocal number
            bar.update(task, completed=number, description=f"{title}: {name}")
            number += 1

        yield live

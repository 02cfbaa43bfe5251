"""Close sinks in parallel within a time limit, so that a dead network does not delay the end of a run."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

_THREAD = "closing "
log = logging.getLogger(__name__)


def close_within(seconds: float, closes: Mapping[str, Callable[[], None]]) -> None:
    """Call all of `closes`. Those that take longer are named in a warning, and their threads are abandoned."""
    threads = [threading.Thread(target=close, name=f"{_THREAD}{name}", daemon=True) for name, close in closes.items()]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
    late = [thread.name.removeprefix(_THREAD) for thread in threads if thread.is_alive()]
    if late:
        log.warning("%s: not closed within %.0f s and abandoned; the run itself is saved", ", ".join(late), seconds)


def is_closing() -> bool:
    """Whether a sink is still being closed; the interpreter's clean-up might wait for it."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())

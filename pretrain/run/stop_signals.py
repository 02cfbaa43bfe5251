"""Signals that request a graceful stop of a run."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

from pretrain.std_streams import drop_hung_up_output

log = logging.getLogger(__name__)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM, SIGINT, SIGUSR1 or SIGHUP ask for a stop after the current step; SIGINT again acts as usual.

    SIGHUP comes when a terminal is closed; if it is ignored at the start, as under nohup, it stays ignored. Slurm sends
    SIGTERM when a grace period begins and again when it ends, so only a second SIGINT ends the program at once.
    After the context has ended without an error, it is too late to stop: signals are ignored until the process ends.
    """
    requested = threading.Event()

    def ask(number: int, _: object) -> None:
        if requested.is_set():
            if number == signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        requested.set()
        if number == signal.SIGHUP:
            drop_hung_up_output()
        log.warning("%s: stopping after the next step at the latest, with a checkpoint", signal.Signals(number).name)

    asking = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        asking.append(signal.SIGHUP)
    previous = {number: signal.signal(number, ask) for number in asking}
    try:
        yield requested.is_set
    except BaseException:
        for number, handler in previous.items():
            signal.signal(number, handler)
        raise
    # Not a Python handler: the interpreter removes these while it cleans up, and a rank that has saved everything would
    # end as one that was killed.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, previous[signal.SIGINT])

"""Blocking calls with a timeout: each runs in a worker thread, which is abandoned when the time is up."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

MAX_THREADS = 64
"""Limit per process, including abandoned threads. Beyond it, new calls wait until one of those calls returns."""

Result = TypeVar("Result")


class CallTimeout(Exception):
    """The call did not return in time."""


class CallThread:
    """Makes calls one after another in one thread, because some libraries allow their objects to be used only there."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._is_stuck = False
        # A daemon thread: a call that never returns must not keep the process alive.
        threading.Thread(target=self._work, name="file-system", args=(_slots,), daemon=True).start()

    def call(self, function: Callable[[], Result], timeout: float) -> Result:
        """Return or raise what the function does. Raises CallTimeout if it takes longer, and for every call after
        that."""
        if self._is_stuck:
            raise CallTimeout
        answer: Future[Result] = Future()
        self._is_stuck = True
        self._calls.put((function, answer))
        wait([answer], timeout)
        if not answer.done():
            raise CallTimeout
        self._is_stuck = False
        return answer.result()

    def release(self) -> None:
        """Return the thread to the pool, or abandon it to end after its current call."""
        if self._is_stuck:
            self._calls.put(None)
        else:
            _idle.append(self)

    def _work(self, places: threading.Semaphore) -> None:
        while (asked := self._calls.get()) is not None:
            function, answer = asked
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)
            del asked, function, answer  # do not keep their objects alive until the next call
        places.release()


def take_thread(timeout: float) -> CallThread:
    """A thread for exclusive use until its release. Raises CallTimeout if too many are abandoned."""
    with contextlib.suppress(IndexError):
        return _idle.pop()
    if not _slots.acquire(timeout=timeout):
        raise CallTimeout
    return CallThread()


_idle: list[CallThread] = []
_slots = threading.Semaphore(MAX_THREADS)


def _reset_after_fork() -> None:
    global _slots
    _idle.clear()
    _slots = threading.Semaphore(MAX_THREADS)


os.register_at_fork(after_in_child=_reset_after_fork)  # threads do not survive a fork

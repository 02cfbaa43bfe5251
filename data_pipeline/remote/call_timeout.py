"""Calls that are waited for a bounded time: a thread makes them, and is left behind where no answer comes."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

MAX_THREADS = 64
"""Of a process, those left behind included: beyond them nobody is asked until one of them has its answer."""

Result = TypeVar("Result")


class CallTimeout(Exception):
    """It did not come in time."""


class CallThread:
    """Makes calls one after another, all in one thread: to what it makes there, not every vendor lets another one."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._is_stuck = False
        # A daemon: a call that never ends must not keep the process from its end.
        threading.Thread(target=self._work, name="file-system", args=(_slots,), daemon=True).start()

    def call(self, function: Callable[[], Result], timeout: float) -> Result:
        """What the function gives or raises; CallTimeout where it takes longer, and from then on."""
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
        """Give the thread back, or leave it behind to end after the call that it is at."""
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
            del asked, function, answer  # what they hold is not kept until the next one
        places.release()


def take_thread(timeout: float) -> CallThread:
    """One that nobody else uses until its release; CallTimeout where too many are left behind."""
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


os.register_at_fork(after_in_child=_reset_after_fork)  # threads stay with the parent

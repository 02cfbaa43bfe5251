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

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """It did not come in time."""


class Caller:
    """Makes calls one after another, all in one thread: to what it makes there, not every vendor lets another one."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._waits = False
        # A daemon: a call that never ends must not keep the process from its end.
        threading.Thread(target=self._work, name="file-system", args=(_places,), daemon=True).start()

    def call(self, function: Callable[[], Answer], timeout: float) -> Answer:
        """What the function gives or raises; NoAnswer where it takes longer, and from then on."""
        if self._waits:
            raise NoAnswer
        answer: Future[Answer] = Future()
        self._waits = True
        self._calls.put((function, answer))
        wait([answer], timeout)
        if not answer.done():
            raise NoAnswer
        self._waits = False
        return answer.result()

    def release(self) -> None:
        """Give the thread back, or leave it behind to end after the call that it is at."""
        if self._waits:
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


def take_caller(timeout: float) -> Caller:
    """One that nobody else uses until its release; NoAnswer where too many are left behind."""
    with contextlib.suppress(IndexError):
        return _idle.pop()
    if not _places.acquire(timeout=timeout):
        raise NoAnswer
    return Caller()


_idle: list[Caller] = []
_places = threading.Semaphore(MAX_THREADS)


def _forget() -> None:
    global _places
    _idle.clear()
    _places = threading.Semaphore(MAX_THREADS)


os.register_at_fork(after_in_child=_forget)  # threads stay with the parent

"""Where the work on pieces is done: anything with the interface of `concurrent.futures`.

Tasks are pure and leave their result in the work folder, so it does not matter which process does which, how often,
or whether it is killed on the way.
"""

import collections
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError, WorkInterrupted
from data_pipeline.pieces.work import WorkFolder, every
from data_pipeline.progress import show_progress

SECONDS_BETWEEN_LOOKS = 1.0
MOST_SUBMITTED = 2048
"""Pieces that an executor is given at once: for a thousand workers, one in work and one waiting. There may be a hundred
thousand, and each of those that are submitted is looked at."""


class Inline(Executor):
    """Does the work where it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def open_executor(config: PrepareConfig) -> Iterator[Executor]:
    """The one that `prepare.executor` names."""
    if config.executor == "local":
        with local_executor(config.num_workers) as executor:
            yield executor
        return
    from data_pipeline.pieces.cluster import dask_executor, slurm_executor

    if config.executor == "dask":
        if config.dask_scheduler is None:
            raise DataError("prepare.dask_scheduler=null: prepare.executor=dask needs a scheduler's address; set it")
        cluster = dask_executor(config.dask_scheduler)
    else:
        cluster = slurm_executor(config.slurm)
    with cluster as executor:
        yield executor


@contextmanager
def local_executor(num_workers: int | None) -> Iterator[Executor]:
    """Processes of this machine; one for each core if None."""
    number = num_workers or len(os.sched_getaffinity(0))
    if number == 1:
        yield Inline()
        return
    # Spawned: a fork would copy this process's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, mp_context=context, initializer=_end_with_parent) as pool:
        yield pool


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_all(
    executor: Executor,
    work: WorkFolder,
    title: str,
    tasks: Mapping[str, tuple[Any, ...]],
    function: Callable[..., None],
    size_of: Mapping[str, int],
    order: Iterable[str] = (),
    then: Callable[[str], None] = lambda key: None,
) -> None:
    """Call `function(work, key, *arguments)` for each key that is not finished; `size_of`: its bytes, for progress.

    `then` gets the keys of `order` here, each when it and all before it are finished, while others are worked on.
    Raises the error of the first task that failed, when those that run have ended. Their work is kept.
    """
    unfinished = {key: size_of[key] for key in tasks if work.record(key) is None}
    waiting = collections.deque(order)
    done = sum(size_of.values()) - sum(unfinished.values())
    told: dict[str, int] = {}
    is_time_to_look = every(SECONDS_BETWEEN_LOOKS, time.monotonic)
    submitted = _Submitted(lambda key: executor.submit(function, work, key, *tasks[key]), unfinished)

    def can_hand_on() -> bool:
        return bool(waiting) and waiting[0] not in unfinished

    with show_progress(title, sum(size_of.values())) as update:
        try:
            while unfinished or waiting:
                submitted.fill()
                for key in submitted.take_ended(0 if can_hand_on() else SECONDS_BETWEEN_LOOKS):
                    done += unfinished.pop(key)
                    told.pop(key, None)
                if is_time_to_look():
                    told.update((key, min(work.told(key), size_of[key])) for key in submitted.keys)
                update(done + sum(told.values()))
                if can_hand_on():  # one, so that no failure of another piece is seen late
                    then(waiting.popleft())
        except BrokenProcessPool:
            raise WorkInterrupted(
                f"{title}: a worker process was killed, as the system does when memory runs out; the finished pieces "
                "are kept: run the same command again, with fewer prepare.num_workers if memory was short"
            ) from None
        except Exception:
            submitted.cancel()
            raise


class _Submitted:
    """The tasks that the executor has, MOST_SUBMITTED at a time."""

    def __init__(self, submit: Callable[[str], Future[Any]], keys: Iterable[str]) -> None:
        self._submit = submit
        self._left = collections.deque(keys)
        self._futures: dict[Future[Any], str] = {}
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()

    @property
    def keys(self) -> Iterable[str]:
        return self._futures.values()

    def fill(self) -> None:
        """As far as there is room; a task that is done where it is submitted is to be taken before the next."""
        while self._left and len(self._futures) < MOST_SUBMITTED:
            future = self._submit(self._left[0])
            self._futures[future] = self._left.popleft()
            future.add_done_callback(self._ended.put)
            if future.done():
                return

    def take_ended(self, seconds: float) -> list[str]:
        """Keys of tasks that have ended, after a wait of at most so long; raises the error of one that failed."""
        ended = []
        with suppress(queue.Empty):
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        for future in ended:
            future.result()
        return [self._futures.pop(future) for future in ended]

    def cancel(self) -> None:
        """Those that are not begun."""
        for future in self._futures:
            future.cancel()

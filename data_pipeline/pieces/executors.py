"""Where the work on pieces is done: anything with the interface of `concurrent.futures`.

Tasks are pure and leave their result in the work folder, so it does not matter which process does which, how often,
or whether it is killed on the way.
"""

import collections
import concurrent.futures
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError, WorkInterrupted
from data_pipeline.pieces.work import WorkFolder, every
from data_pipeline.progress import show_progress

SECONDS_BETWEEN_LOOKS = 1.0


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
    with concurrent.futures.ProcessPoolExecutor(number, mp_context=context, initializer=_end_with_parent) as pool:
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
    running: dict[Future[Any], str] = {}
    told: dict[str, int] = {}
    is_time_to_look = every(SECONDS_BETWEEN_LOOKS, time.monotonic)
    with show_progress(title, sum(size_of.values())) as update:

        def can_hand_on() -> bool:
            return bool(waiting) and waiting[0] not in unfinished

        def go_on(finished: Iterable[Future[Any]]) -> None:
            nonlocal done
            for future in finished:
                future.result()
                key = running.pop(future)
                done += unfinished.pop(key)
                told.pop(key, None)
            if is_time_to_look():
                told.update((key, min(work.told(key), size_of[key])) for key in running.values())
            update(done + sum(told.values()))
            if can_hand_on():  # one, so that no failure of another piece is seen late
                then(waiting.popleft())

        try:
            for key in list(unfinished):
                future = executor.submit(function, work, key, *tasks[key])
                running[future] = key
                if future.done():
                    go_on([future])
            while running or waiting:
                seconds = 0 if can_hand_on() else SECONDS_BETWEEN_LOOKS
                go_on(concurrent.futures.wait(running, seconds, FIRST_COMPLETED).done)
        except BrokenProcessPool:
            raise WorkInterrupted(
                f"{title}: a worker process was killed, as the system does when memory runs out; the finished pieces "
                "are kept: run the same command again, with fewer prepare.num_workers if memory was short"
            ) from None
        finally:
            for future in running:
                future.cancel()

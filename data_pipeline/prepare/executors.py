"""Where the work on pieces is done: anything with the interface of `concurrent.futures`.

Tasks are pure and leave their result in the work folder, so it does not matter which process does which, how often,
or whether it is killed on the way.
"""

import collections
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError, WorkInterrupted
from data_pipeline.progress import show_progress
from data_pipeline.storage.task_store import TaskStore, at_most_every

POLL_SECONDS = 1.0
MAX_SUBMITTED = 2048
"""Pieces that an executor is given at once: for a thousand workers, one in work and one waiting. There may be a hundred
thousand, and each of those that are submitted is looked at."""
MAX_TMPDIR_BYTES = 70
"""Bytes of TMPDIR below which the server's socket has a name of at most 107, which is all that a socket can have."""
PRELOADED = ["__main__", "data_pipeline.prepare.clean_task", "data_pipeline.prepare.encode_task"]


class InlineExecutor(Executor):
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
        with local_executor(config.num_workers or num_cores()) as executor:
            yield executor
        return
    from data_pipeline.prepare.dask import dask_executor, slurm_executor

    if config.executor == "dask":
        if config.dask_scheduler is None:
            raise DataError("prepare.dask_scheduler=null: prepare.executor=dask needs a scheduler's address; set it")
        cluster = dask_executor(config.dask_scheduler)
    else:
        cluster = slurm_executor(config.slurm)
    with cluster as executor:
        yield executor


def num_processes(config: PrepareConfig) -> int | None:
    """Of the executor; None: a Dask cluster's may come and go."""
    if config.executor == "local":
        return config.num_workers or num_cores()
    return config.slurm.jobs * config.slurm.cores if config.executor == "slurm" else None


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def local_executor(num_workers: int) -> Iterator[Executor]:
    """Processes of this machine."""
    if num_workers == 1:
        yield InlineExecutor()
        return
    # Forked from a server that has the modules and no work: a fork of this process would copy its threads as they are.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    reader, writer = context.Pipe(duplex=False)
    pool = _Pool(num_workers, mp_context=context, initializer=_exit_with_driver, initargs=(reader,))
    with reader, writer, pool:
        try:
            yield pool
        except KeyboardInterrupt:
            writer.close()  # who interrupts does not wait for the pieces in work
            raise


class _Pool(ProcessPoolExecutor):
    """Starts processes, as it does where work is submitted, in a thread that Ctrl-C does not interrupt halfway."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._starter = ThreadPoolExecutor(1, initializer=_start_fork_server)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._starter.submit(super().submit, fn, *args, **kwargs).result()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._starter.shutdown()
        super().shutdown(wait, cancel_futures=cancel_futures)


def _start_fork_server() -> None:
    """With this process's module path, and deaf to Ctrl-C, as are the workers: the signal reaches all processes that a
    terminal started, and this one ends the others."""
    resource_tracker.ensure_running()  # before: it lets the signal through again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of this thread, and so of what is started in it
    # The server of Python 3.11 would look in the current folder first, wherever this process has its modules from.
    folder = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > MAX_TMPDIR_BYTES:
        tempfile.tempdir = "/tmp"
    path = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    before = {name: os.environ[name] for name in path if name in os.environ}
    os.environ.update(path)
    try:
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = folder
        for name in path:
            del os.environ[name]
        os.environ.update(before)


def _exit_with_driver(reader: Connection) -> None:
    """A worker would wait for work for ever where the driver was killed; the pipe from it, on which nothing is sent,
    ends with it."""

    def wait() -> None:
        multiprocessing.connection.wait([reader])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_tasks(
    executor: Executor,
    work: TaskStore,
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
    progress: dict[str, int] = {}
    is_time_to_look = at_most_every(POLL_SECONDS, time.monotonic)
    submitted = _Submitted(lambda key: executor.submit(function, work, key, *tasks[key]), unfinished)

    def can_hand_on() -> bool:
        return bool(waiting) and waiting[0] not in unfinished

    with show_progress(title, sum(size_of.values())) as update:
        try:
            while unfinished or waiting:
                submitted.fill()
                for key in submitted.take_ended(0 if can_hand_on() else POLL_SECONDS):
                    done += unfinished.pop(key)
                    progress.pop(key, None)
                if is_time_to_look():
                    progress.update((key, min(work.progress(key), size_of[key])) for key in submitted.keys)
                update(done + sum(progress.values()))
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
    """The tasks that the executor has, MAX_SUBMITTED at a time."""

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
        while self._left and len(self._futures) < MAX_SUBMITTED:
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

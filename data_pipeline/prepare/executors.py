"""Runs tasks on any executor with the interface of `concurrent.futures`.

Tasks are pure functions that write their result to the task store. So it does not matter which process runs one, how
often, or whether that process is killed.
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
"""Tasks submitted at once, enough to give a thousand workers one running and one waiting task each. A corpus may have a
hundred thousand tasks, and every submitted task is polled."""
MAX_TMPDIR_BYTES = 70
"""The longest TMPDIR with which the path of the fork server's socket stays within the limit of 107 bytes."""
PRELOADED = ["__main__", "data_pipeline.prepare.clean_task", "data_pipeline.prepare.encode_task"]


class InlineExecutor(Executor):
    """Runs tasks immediately, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def open_executor(config: PrepareConfig) -> Iterator[Executor]:
    """The executor that `prepare.executor` names."""
    if config.executor == "local":
        with local_executor(config.num_workers or num_cores()) as executor:
            yield executor
        return
    from data_pipeline.prepare.dask import dask_executor, slurm_executor

    if config.executor == "dask":
        if config.dask_scheduler is None:
            raise DataError("prepare.dask_scheduler=null: prepare.executor=dask needs the scheduler's address")
        cluster = dask_executor(config.dask_scheduler)
    else:
        cluster = slurm_executor(config.slurm)
    with cluster as executor:
        yield executor


def num_processes(config: PrepareConfig) -> int | None:
    """Number of worker processes. None: unknown, because workers of a Dask cluster may come and go."""
    if config.executor == "local":
        return config.num_workers or num_cores()
    return config.slurm.jobs * config.slurm.cores if config.executor == "slurm" else None


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def local_executor(num_workers: int) -> Iterator[Executor]:
    """An executor with processes on this machine."""
    if num_workers == 1:
        yield InlineExecutor()
        return
    # Workers are forked from a server process that has imported the modules and runs no threads. A fork of this process
    # would copy its threads' locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    reader, writer = context.Pipe(duplex=False)
    pool = _Pool(num_workers, mp_context=context, initializer=_exit_with_driver, initargs=(reader,))
    with reader, writer, pool:
        try:
            yield pool
        except KeyboardInterrupt:
            writer.close()  # ends the workers, so that Ctrl-C does not wait for running tasks
            raise


class _Pool(ProcessPoolExecutor):
    """Starts worker processes (when tasks are submitted) in a thread that Ctrl-C cannot interrupt halfway."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._starter = ThreadPoolExecutor(1, initializer=_start_fork_server)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._starter.submit(super().submit, fn, *args, **kwargs).result()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._starter.shutdown()
        super().shutdown(wait, cancel_futures=cancel_futures)


def _start_fork_server() -> None:
    """Start the server with this process's module path and with Ctrl-C blocked, also for the workers: the terminal
    sends the signal to all processes, and this process ends the others."""
    resource_tracker.ensure_running()  # first, because it unblocks the signal again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for this thread, and so for processes started in it
    # On Python 3.11 the server searches the current folder first, even if this process imported its modules from
    # elsewhere.
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
    """End this worker when the driver is killed, instead of waiting forever. The driver holds the other end of the
    pipe, which closes with it; nothing is sent."""

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
    """Call `function(work, key, *arguments)` for each unfinished key. `size_of` gives the bytes of each task, for
    progress.

    `then` is called in this process with the keys of `order`, in that order, as soon as each task is finished, while
    others run. If a task fails, raises its error when the running tasks have ended; their results are kept.
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
                if can_hand_on():  # one at a time, so that the failure of another task is noticed soon
                    then(waiting.popleft())
        except BrokenProcessPool:
            raise WorkInterrupted(
                f"{title}: a worker process was killed, as the system does when memory runs out",
                "run the same command again; the finished tasks are kept",
                "lower prepare.num_workers if memory was short",
            ) from None
        except Exception:
            submitted.cancel()
            raise


class _Submitted:
    """The tasks given to the executor, at most MAX_SUBMITTED at a time."""

    def __init__(self, submit: Callable[[str], Future[Any]], keys: Iterable[str]) -> None:
        self._submit = submit
        self._left = collections.deque(keys)
        self._futures: dict[Future[Any], str] = {}
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()

    @property
    def keys(self) -> Iterable[str]:
        return self._futures.values()

    def fill(self) -> None:
        """Submit as many as fit. Stop after a task that finished during `submit`, so that its result is handled
        first."""
        while self._left and len(self._futures) < MAX_SUBMITTED:
            future = self._submit(self._left[0])
            self._futures[future] = self._left.popleft()
            future.add_done_callback(self._ended.put)
            if future.done():
                return

    def take_ended(self, seconds: float) -> list[str]:
        """Wait up to `seconds` and return the keys of tasks that ended. Raises the error of a task that failed."""
        ended = []
        with suppress(queue.Empty):
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        for future in ended:
            future.result()
        return [self._futures.pop(future) for future in ended]

    def cancel(self) -> None:
        """Cancel the tasks that have not started."""
        for future in self._futures:
            future.cancel()

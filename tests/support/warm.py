"""The program in a process forked from one that has imported torch, DeepSpeed and Megatron, which takes seconds.

The process is otherwise like one that `python -m pretrain` starts: its own working directory, environment, arguments,
streams and exit code. A test whose law is about that command itself starts the real one.

Several ranks are started as `srun` starts them: variables name each rank, its world and where they meet. Their parent
passes signals on, and ends the others when one failed, as torchrun does.
"""

import atexit
import contextlib
import gc
import importlib
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NoReturn

import pretrain
from pretrain.distributed.vendor_imports import megatron_imports

ROOT = Path(__file__).resolve().parents[2]
END_SECONDS = 30.0
"""Time for the other ranks to end after one failed or a signal came, before they are killed; torchrun's."""


@dataclass(frozen=True)
class Request:
    arguments: tuple[str, ...]
    folder: Path
    environment: dict[str, str]
    stdout: Path
    stderr: Path
    num_ranks: int
    """0: no variables of a launcher."""
    port: int
    before: Path | None = None
    """Code that is run in each process first."""


class WarmProcess:
    """A process that another one started; used like `subprocess.Popen`."""

    def __init__(self, pid: int, ended: Callable[[int, float | None], int | None]) -> None:
        self.pid, self._ended = pid, ended
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ended(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._ended(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmParent:
    """This side of the connection to the process that forks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._codes: dict[int, int] = {}

    def start(self, request: Request) -> WarmProcess:
        for path in (request.stdout, request.stderr):
            path.touch()
        self._connection.send(request)
        while True:
            kind, pid, code = self._connection.recv()
            if kind == "started":
                return WarmProcess(pid, self._ended)
            self._codes[pid] = code

    def _ended(self, pid: int, timeout: float | None) -> int | None:
        limit = None if timeout is None else time.monotonic() + timeout
        while pid not in self._codes:
            left = None if limit is None else max(0.0, limit - time.monotonic())
            if not self._connection.poll(left):
                return None
            _, other, code = self._connection.recv()
            self._codes[other] = code
        return self._codes[pid]


VENDORS = ("bokeh.models", "matplotlib.figure", "torch._dynamo", "torch.utils.tensorboard")

OPTIONAL = ("pretrain.evaluation.lm_eval_model", "pretrain.evaluation.lm_eval_tasks")
"""Modules that need an extra, and are imported only by what uses it."""


def warm_up() -> None:
    """Import all that a run imports."""
    for name in VENDORS:
        importlib.import_module(name)
    with megatron_imports():
        importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
    for module in pkgutil.walk_packages(pretrain.__path__, "pretrain."):
        if not module.name.endswith("__main__") and module.name not in OPTIONAL:
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all that the imports left behind
    assert_one_thread()


def assert_one_thread() -> None:
    threads = len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 1
    assert threads == 1, f"{threads} threads: a fork would copy one of them"


def serve(requests: Connection) -> None:
    """Start processes until the other side is gone; report the exit code of each."""
    children: set[int] = set()
    woken, waker = os.pipe()
    for end in (woken, waker):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    try:
        warm_up()
        while True:
            ready = wait([requests, woken])
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
                while children and (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                    children.discard(ended[0])
                    requests.send(("ended", ended[0], os.waitstatus_to_exitcode(ended[1])))
            if requests in ready:
                request: Request = requests.recv()
                pid = _fork(lambda request=request: _be_program(request), close=[requests.fileno(), woken, waker])  # type: ignore[misc]
                children.add(pid)
                requests.send(("started", pid, None))
    except (EOFError, ConnectionError):
        pass
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork(life: Callable[[], int], close: Sequence[int] = ()) -> int:
    """Fork a process that lives so and ends with the code that is returned."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in close:
            os.close(descriptor)
        code = life()
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        _leave(code)


def _leave(code: int) -> NoReturn:
    """End as Python does, except that nothing is taken apart."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code)


def _be_program(request: Request) -> int:
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    for descriptor, path in ((1, request.stdout), (2, request.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    if request.num_ranks:
        return _be_launcher(request)
    return _run_program(request)


def _run_program(request: Request) -> int:
    """`python -m pretrain`."""
    sys.argv = [str(ROOT / "pretrain" / "__main__.py"), *request.arguments]
    sys.path[0] = str(request.folder)
    try:
        if request.before:
            exec(compile(request.before.read_text(), request.before, "exec"), {"__name__": request.before.stem})
        runpy.run_module("pretrain", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _be_launcher(request: Request) -> int:
    alive = {_fork(lambda rank=rank: _be_rank(request, rank)) for rank in range(request.num_ranks)}  # type: ignore[misc]
    worst, limit = 0, float("inf")

    def pass_on(number: int) -> None:
        nonlocal limit
        limit = min(limit, time.monotonic() + END_SECONDS)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    stopped = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        pass_on(number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            alive.discard(pid)
            if code and not worst and not stopped:
                pass_on(signal.SIGTERM)
            worst = worst or code
        elif time.monotonic() > limit:
            pass_on(signal.SIGKILL)
        else:
            time.sleep(0.005)
    return 1 if worst or stopped else 0


def _be_rank(request: Request, rank: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    size = request.num_ranks
    world = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": request.port,
    }
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    Path("/proc/self/comm").write_text(f"rank-{rank}")
    return _run_program(request)


def rank_of(name: str) -> str | None:
    """The rank of a process, from its name."""
    return name.removeprefix("rank-") if name.startswith("rank-") else None


def run(parent: WarmParent, request: Request, timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run to the end; both streams as text."""
    process = parent.start(request)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        raise
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (request.stdout, request.stderr)]
    return subprocess.CompletedProcess([*request.arguments], code, *texts)

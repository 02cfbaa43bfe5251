"""Functions run on several ranks, each in a process of its own, without pytest's process joining any group.

Importing torch, DeepSpeed and Megatron takes seconds. One warm server per test session does it once, with one thread
and no process group, and forks the ranks of every call from there; they meet in a file, so no port is taken.
"""

import atexit
import contextlib
import functools
import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

from pretrain.config.engine import EngineConfig
from tests.support import warm
from tests.support.cores import cores
from tests.support.models import run_config
from tests.support.warm import WarmParent

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 10.0
"""After one rank failed: time for the others to fail too and report what they saw, before they are killed."""


class RanksFailed(AssertionError):
    """At least one rank raised, died or took too long; the text holds every traceback with its rank."""


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 300.0,
    warm: Callable[[], None] | None = None,
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    joined: bool = True,
) -> list[Any]:
    """Call `function(here, *args)` on each rank, `here` being its `Runtime` on the CPU; returns each rank's result.

    The function must be at a module's top level, because it is pickled by name; arguments and results are pickled.
    `warm` is called before, in the process that all ranks are forked from. In each rank all of this happens in the
    context that `around` makes: `on_pretend_gpu` (pretrain/pretend/machine.py), for example. `joined=False` is for
    functions that make their own runtime, as verbs do: `function(*args)` is called before the ranks have met.
    """
    engine = run_config(timeout_minutes=timeout / 60).engine
    request = pickle.dumps(_Request(function, world_size, args, timeout, engine, warm, around, joined))
    server = _server().ranks
    try:
        with cores(world_size):
            server.send_bytes(request)
            outcome = pickle.loads(server.recv_bytes())
    except BaseException:
        # Interrupted, or the server is gone: the next call must not receive this one's answer.
        server.close()
        _server.cache_clear()
        raise
    if isinstance(outcome, str):
        raise RanksFailed(outcome)
    return [pickle.loads(result) for result in outcome]


@dataclass(frozen=True)
class _Request:
    function: Callable[..., Any]
    world_size: int
    args: tuple[Any, ...]
    timeout: float
    engine: EngineConfig
    warm: Callable[[], None] | None
    around: Callable[[], AbstractContextManager[Any]]
    joined: bool


@dataclass(frozen=True)
class _Server:
    ranks: Connection
    programs: WarmParent


def warm_parent() -> WarmParent:
    """Starts the program in forks of this session's server."""
    return _server().programs


@functools.cache
def _server() -> _Server:
    """The connections to this session's server; it ends when they are closed, by whatever cause."""
    ours, theirs = Pipe()
    our_programs, their_programs = Pipe()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron warns without it, on a CPU too
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ranks", str(theirs.fileno()), str(their_programs.fileno())],
        pass_fds=[theirs.fileno(), their_programs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    their_programs.close()
    atexit.register(_stop, [ours, our_programs], process)
    return _Server(ours, WarmParent(our_programs))


def _stop(connections: list[Connection], process: "subprocess.Popen[bytes]") -> None:
    for connection in connections:
        connection.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(requests: Connection, programs: Connection) -> None:
    import_vendors()
    if os.fork() == 0:
        requests.close()
        warm.serve(programs)
        os._exit(0)
    programs.close()
    while True:
        try:
            request: _Request = pickle.loads(requests.recv_bytes())
        except EOFError:
            return
        if request.warm is not None:
            request.warm()
        requests.send_bytes(_run(request, requests))


def import_vendors() -> None:
    """Import torch, DeepSpeed and Megatron for the CPU, in one thread."""
    import torch

    torch.set_num_threads(1)
    from pretrain.distributed import megatron_on_cpu
    from pretrain.engine import zero  # noqa: F401  # imports all that ranks need
    from pretrain.engine.vendor_patches import import_deepspeed

    megatron_on_cpu.redirect(torch.device("cpu"))
    import_deepspeed(torch.device("cpu"))
    gc.collect()
    gc.freeze()  # a collection in a rank would touch, and so copy, all that the imports left behind
    warm.assert_one_thread()


@dataclass
class _Rank:
    rank: int
    pid: int
    connection: Connection
    output: Path
    result: bytes = b""
    failure: str = ""
    reaped: bool = False

    def end(self) -> None:
        """Kill if alive, and reap."""
        if not self.reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.reaped = True

    def receive(self) -> None:
        """Take the result or the traceback, or the way in which the process ended without one."""
        try:
            succeeded, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            _, status = os.waitpid(self.pid, 0)
            self.reaped = True
            self.failure = f"ended without a result, exit status {os.waitstatus_to_exitcode(status)}"
            return
        if succeeded:
            self.result = value
        else:
            self.failure = value


def _run(request: _Request, requests: Connection) -> bytes:
    """Fork the ranks and gather their results, or the text of their failures."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_fork(request, rank, Path(folder), requests) for rank in range(request.world_size)]
        try:
            failures = _gather(ranks, request.timeout, requests)
        finally:
            for rank in ranks:
                rank.end()
                rank.connection.close()
        if failures:
            return pickle.dumps("\n".join(["", *failures]))
        return pickle.dumps([rank.result for rank in ranks])


def _gather(ranks: list[_Rank], timeout: float, requests: Connection) -> list[str]:
    """Wait for all ranks; texts of failures in the order in which they came."""
    failures: list[str] = []
    waiting = {rank.connection: rank for rank in ranks}
    deadline = time.monotonic() + timeout
    while waiting:
        ready = wait([*waiting, requests], max(0.0, deadline - time.monotonic()))
        if requests in ready:
            raise EOFError("the session that asked is gone")
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            rank.receive()
            if rank.failure:
                failures.append(_describe(rank))
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if not ready:
            reason = "still waiting after the others failed" if failures else f"not done in {timeout:g} s"
            for rank in waiting.values():
                rank.failure = reason
                failures.append(_describe(rank))
            break
    return failures


def _describe(rank: _Rank) -> str:
    printed = rank.output.read_text(errors="replace")[-2000:]
    return f"--- rank {rank.rank}: {rank.failure}" + (f"\n... and printed:\n{printed}" if printed else "")


def _fork(request: _Request, rank: int, folder: Path, requests: Connection) -> _Rank:
    receiving, sending = Pipe(duplex=False)
    output = folder / f"output-{rank}"
    output.touch()
    pid = os.fork()
    if pid == 0:
        receiving.close()
        requests.close()  # else a rank that outlives the server would keep its caller waiting
        _be_rank(request, rank, folder, output, sending)
    sending.close()
    return _Rank(rank, pid, receiving, output)


def _be_rank(request: _Request, rank: int, folder: Path, output: Path, sending: Connection) -> NoReturn:
    """The life of a forked process: never returns into the server's code."""
    try:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        answer = (True, pickle.dumps(_call(request, rank, folder)))
    except BaseException:
        answer = (False, traceback.format_exc())
    sending.send_bytes(pickle.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not through the server's exit handlers


def _call(request: _Request, rank: int, folder: Path) -> Any:
    import torch.distributed as dist

    from pretrain.distributed import runtime

    size = request.world_size
    world = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in world.items()})
    store, real = dist.FileStore(str(folder / "store"), size), runtime.runtime
    with request.around():
        if not request.joined:
            runtime.runtime = lambda engine, **options: real(engine, store, **options)
            return request.function(*request.args)
        with real(request.engine, store) as here:
            return request.function(here, *request.args)


if __name__ == "__main__":
    # Under its module's name, not as __main__: requests are unpickled from there.
    from tests.support import ranks

    ranks._serve(*(Connection(int(descriptor)) for descriptor in sys.argv[1:]))

"""Ranks that are measured each in a process of its own, forked from one that has imported the vendors."""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import psutil

from data_pipeline.errors import UserError
from pretrain.pretend.measured import Measured

if TYPE_CHECKING:
    from pretrain.pretend.one_rank import Asked

GIB = 2**30
NEEDED = GIB
"""Bytes of this machine's memory for each process: measured 0.4 to 0.7 GiB."""


def check_room() -> None:
    """Raise UserError if this machine has no memory for one process."""
    available = psutil.virtual_memory().available
    if available < NEEDED:
        raise UserError(
            f"a dry run needs {NEEDED / GIB:g} GiB of this machine's memory, {available / GIB:.1f} GiB are free",
            "end other programs, or run it on another machine",
        )


def measure_each(asked: "Sequence[Asked]") -> "list[Measured]":
    """Measure the ranks, as many at a time as there are cores and memory for.

    Raises the UserError of the first rank that fails, and one for any other failure.
    """
    at_once = min(len(os.sched_getaffinity(0)), int(psutil.virtual_memory().available / NEEDED))
    waiting, found = list(enumerate(asked)), {}
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    gc.freeze()  # a collection in a child would copy all that the imports left
    try:
        while waiting or running:
            while waiting and len(running) < max(at_once, 1):
                number, item = waiting.pop(0)
                connection, process = _start(item)
                running[connection] = number, process
            for connection in [each for each in running if each in wait(list(running))]:
                number, process = running.pop(connection)
                found[number] = _result(connection, process, asked[number].rank)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
        gc.unfreeze()
    return [found[number] for number in range(len(asked))]


def _start(asked: "Asked") -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure_into, args=(sending, asked), daemon=True)
    process.start()
    sending.close()
    return receiving, process


def _result(connection: Connection, process: BaseProcess, rank: int) -> Measured:
    try:
        outcome = connection.recv()
    except EOFError:
        outcome = None
    process.join()
    match outcome:
        case Measured():
            return outcome
        case UserError():
            raise outcome
        case str():
            raise UserError(f"the dry run of rank {rank} failed: {outcome}")
    code = process.exitcode or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    hint = "this machine may have too little memory" if code == -signal.SIGKILL else ""
    raise UserError(f"the dry run of rank {rank} failed: its process {how}", hint)


def _measure_into(sending: Connection, asked: "Asked") -> None:
    """The work of a child. Warnings of the vendors are dropped."""
    from pretrain.pretend.one_rank import measure

    outcome: Measured | UserError | str
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        outcome = measure(asked)
    except UserError as error:
        outcome = error
    except BaseException as error:  # the parent reports it, whatever it is
        outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    sending.send(outcome)
    sending.close()
    sys.stdout.flush()
    os._exit(0)  # without the vendors' handlers at exit

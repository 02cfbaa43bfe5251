"""Steps of a save or a load that all ranks run: one that fails on any rank fails on all, with the reason.

Except in `all_gather_results`, what a rank receives does not grow with the number of ranks.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_pipeline.errors import SystemRefused, UserError
from pretrain.config.errors import RunError, RunRefused

ALMOST_NOTHING = 1 << 20
"""Bytes. A disk with less free space counts as full."""

Result = TypeVar("Result")


def run_on_all_ranks(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> Result:
    """Run `action` on all ranks of the group; returns this rank's result, or raises the same RunError on all of them.

    It is RunRefused if the system refused the action.
    """
    fault, kind = "", RunError  # the class is sent too: all ranks end with the same exit code
    hints: tuple[str, ...] = ()
    try:
        result = action()
    except UserError as error:
        fault, hints = error.message, error.hints
        kind = RunRefused if isinstance(error, SystemRefused) else RunError
    except OSError as error:
        cause = "no space left on the disk" if _is_full(folder) else error.strerror or error
        kind = RunRefused
        fault = f"could not {what} a checkpoint in {folder}: rank {dist.get_rank()}: {cause}"
    rank, size = dist.get_rank(), group.size()
    first = torch.tensor(rank if fault else size)
    dist.all_reduce(first, op=dist.ReduceOp.MIN, group=group)
    if int(first) < size:
        sent: list[Any] = [(fault, hints, kind) if rank == int(first) else None]
        dist.broadcast_object_list(sent, src=int(first), group=group)
        fault, hints, kind = sent[0]
        raise kind(fault, *hints)
    return result


def _is_full(folder: Path) -> bool:
    """Never raises: if this rank left `run_on_all_ranks` here, the others would wait for it."""
    try:
        return shutil.disk_usage(folder).free < ALMOST_NOTHING
    except OSError:  # it does not exist, or its file system does not respond either
        return False


def broadcast_result(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> Result:
    """Like `run_on_all_ranks`, but returns the result of rank 0 on all ranks."""
    results: list[Any] = [run_on_all_ranks(what, folder, group, action)]
    dist.broadcast_object_list(results, src=0, group=group)
    result: Result = results[0]
    return result


def all_true(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], bool]) -> bool:
    """Like `run_on_all_ranks`, but returns whether `action` is true on all ranks."""
    holds = torch.tensor(int(run_on_all_ranks(what, folder, group, action)))
    dist.all_reduce(holds, op=dist.ReduceOp.MIN, group=group)
    return bool(holds)


def all_gather_results(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> list[Result]:
    """Like `run_on_all_ranks`, but returns the results of all ranks on every rank. Only for small results."""
    results: list[Any] = [None] * group.size()
    dist.all_gather_object(results, run_on_all_ranks(what, folder, group, action), group=group)
    return results

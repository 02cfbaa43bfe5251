"""Steps of a save or a load that all ranks take together: one that fails on any rank fails on all, with the reason.

What a rank receives does not grow with the number of ranks, except in `all_say`.
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
"""Bytes: a disk with less is called full."""

Result = TypeVar("Result")


def together(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> Result:
    """Run `action` on all ranks of the group; returns this rank's result, or raises RunError on all of them.

    If the system refused, that is RunRefused.
    """
    fault, kind = "", RunError  # the class travels too: all ranks end with the same exit code
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
        told: list[Any] = [(fault, hints, kind) if rank == int(first) else None]
        dist.broadcast_object_list(told, src=int(first), group=group)
        fault, hints, kind = told[0]
        raise kind(fault, *hints)
    return result


def _is_full(folder: Path) -> bool:
    """Never raises: a rank that left `together` here would leave the others waiting."""
    try:
        return shutil.disk_usage(folder).free < ALMOST_NOTHING
    except OSError:  # it is not there, or its file system does not answer either
        return False


def first_says(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> Result:
    """The same; returns rank 0's result on all ranks."""
    results: list[Any] = [together(what, folder, group, action)]
    dist.broadcast_object_list(results, src=0, group=group)
    result: Result = results[0]
    return result


def holds_on_all(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], bool]) -> bool:
    """The same; returns on all ranks whether `action` is true on all of them."""
    holds = torch.tensor(int(together(what, folder, group, action)))
    dist.all_reduce(holds, op=dist.ReduceOp.MIN, group=group)
    return bool(holds)


def all_say(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> list[Result]:
    """The same; returns every rank's result on all ranks: for what takes some bytes."""
    results: list[Any] = [None] * group.size()
    dist.all_gather_object(results, together(what, folder, group, action), group=group)
    return results

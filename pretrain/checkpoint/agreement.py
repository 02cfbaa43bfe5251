"""Steps of a save or a load that all ranks take together: one that fails on any rank fails on all, with the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from data_pipeline.errors import SystemRefused, UserError
from pretrain.config.errors import RunError, RunRefused

ALMOST_NOTHING = 1 << 20
"""Bytes: a disk with less is called full."""

Result = TypeVar("Result")


def together(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> list[Result]:
    """Run `action` on all ranks of the group; returns every rank's result, or raises RunError on all of them.

    If the system refused, that is RunRefused.
    """
    result, fault, kind = None, None, RunError  # the class travels too: all ranks end with the same exit code
    try:
        result = action()
    except UserError as error:
        fault, kind = str(error), RunRefused if isinstance(error, SystemRefused) else RunError
    except OSError as error:
        full = folder.exists() and shutil.disk_usage(folder).free < ALMOST_NOTHING
        cause = "no space left on the disk" if full else error.strerror or error
        kind = RunRefused
        fault = f"could not {what} a checkpoint in {folder}: rank {dist.get_rank()}: {cause}"
    outcomes: list[Any] = [None] * group.size()
    dist.all_gather_object(outcomes, (fault, kind, result), group=group)
    for fault, kind, _ in outcomes:
        if fault:
            raise kind(fault)
    return [result for _, _, result in outcomes]

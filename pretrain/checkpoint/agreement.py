"""Steps of a save or a load that all ranks take together: one that fails on any rank fails on all, with the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from data_pipeline.errors import UserError
from pretrain.config.errors import RunError

ALMOST_NOTHING = 1 << 20
"""Bytes: a disk with less is called full."""

Result = TypeVar("Result")


def together(what: str, folder: Path, group: dist.ProcessGroup, action: Callable[[], Result]) -> list[Result]:
    """Run `action` on all ranks of the group; returns every rank's result, or raises RunError on all of them."""
    result, fault = None, None
    try:
        result = action()
    except UserError as error:
        fault = str(error)
    except OSError as error:
        full = folder.exists() and shutil.disk_usage(folder).free < ALMOST_NOTHING
        cause = "no space left on the disk" if full else error.strerror or error
        fault = f"could not {what} a checkpoint in {folder}: rank {dist.get_rank()}: {cause}"
    outcomes: list[Any] = [None] * group.size()
    dist.all_gather_object(outcomes, (fault, result), group=group)
    faults = [fault for fault, _ in outcomes if fault]
    if faults:
        raise RunError(faults[0])
    return [result for _, result in outcomes]

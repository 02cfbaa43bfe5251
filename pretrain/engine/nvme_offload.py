"""Optimizer states and parameters on a disk of the node (ZeRO-Infinity, Rajbhandari et al. 2021): where, and how they
are reached.

DeepSpeed swaps whole sub-groups of ZeRO-3's optimizer states, and single partitions of parameters, through its async_io
op, and keeps small ones in memory. The inner fields named here are those of deepspeed 0.19.8.
"""

import atexit
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.config.errors import ConfigError

log = logging.getLogger(__name__)

BUFFERS = 4
"""In the host's memory, each of the size of the largest sub-group: masters, two moments, gradients."""


@dataclass(frozen=True)
class Scratch:
    """This rank's place on the disk, and what stands in memory on the way there."""

    folder: Path
    partitions: int
    """Of parameters, that are in memory at one time."""
    partition_elements: int
    """Of the largest of them."""


def require_async_io() -> None:
    """Compile DeepSpeed's async_io if this machine has not yet; ConfigError where that cannot be."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import _get_build_directory

    builder = AsyncIOBuilder()
    folder = Path(_get_build_directory(builder.name, verbose=False))
    try:
        with (folder.parent / f"{builder.name}.pretrain-lock").open("w") as lock:
            # One process at a time, also where nothing is left to compile: torch's own lock stays behind when a process
            # is killed, and all later ones would wait for ever. This one the system takes back.
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "lock").unlink(missing_ok=True)
            if not (folder / f"{builder.name}.so").exists():
                log.info("compiling DeepSpeed's async_io, once on this machine: minutes")
            builder.load(verbose=False)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ConfigError(
            [
                "engine.offload with nvme: DeepSpeed's async_io cannot be compiled on this machine "
                f"({reason[0] if reason else type(error).__name__}); install libaio's headers (libaio-dev) and a C++ "
                "compiler, or set cpu in its place"
            ]
        ) from error


def own_folder(nvme_path: str, run: str, rank: int, needed: int, ranks_here: int) -> Path:
    """An empty folder for this rank's files, removed when the process ends.

    Raises ConfigError where it cannot be made, or the disk has no room for `needed` bytes of each of `ranks_here`.
    """
    shared = Path(nvme_path) / f"pretrain-{hashlib.sha256(str(Path(run).resolve()).encode()).hexdigest()[:12]}"
    folder = shared / f"rank-{rank}"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError([f"engine.offload.nvme_path: {error.strerror}: {folder}"]) from error
    if free < needed * ranks_here:
        raise ConfigError(
            [
                f"engine.offload.nvme_path={nvme_path}: {free / 2**30:.1f} GiB free, and the {ranks_here} ranks of "
                f"this node need {needed * ranks_here / 2**30:.1f} GiB"
            ]
        )
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def is_on_disk(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "swap_optimizer", False))


@contextlib.contextmanager
def in_memory(optimizer: Any, master: Tensor) -> Iterator[None]:
    """In its context the master and its moments, if swapped, are tensors as any other; then they are written back."""
    swapped = is_on_disk(optimizer) and _swap_info(optimizer, master)
    if swapped:
        optimizer.optimizer_swapper.swap_in_optimizer_state(parameter=master)
    yield
    if swapped:
        optimizer.optimizer_swapper.swap_out_optimizer_state(parameter=master)


def reserve_for_shares(swapper: Any, dp: int) -> None:
    """The buffer through which updated parameters go to the disk is asked for in whole parameters: cut it to shares."""
    reserve = swapper.reserve_partitioned_swap_space
    swapper.reserve_partitioned_swap_space = lambda sizes: reserve([-(-size // dp) for size in sizes])


def write_parameters(optimizer: Any, sub_group: int) -> None:
    """Copy the masters of a sub-group whose parameters are on the disk into them."""
    with in_memory(optimizer, optimizer.fp32_partitioned_groups_flat[sub_group]):
        optimizer._partitioned_params_swap_out(sub_group)


def on_disk(optimizer: Any, master: Tensor, state: Tensor) -> Tensor:
    """`state` (the master itself or a moment of it), or the file that holds it between the steps, as a tensor.

    Writing into that changes the file: the system shows one content to memory maps and to direct reads.
    """
    if not is_on_disk(optimizer):
        return state
    swapped = _swap_info(optimizer, master)
    for context in swapped.tensors if swapped else ():
        if context.compute_tensor is state:
            return torch.from_file(context.swap_path, shared=True, size=swapped.numel(), dtype=master.dtype)
    return state


def _swap_info(optimizer: Any, master: Tensor) -> Any:
    """None for a sub-group that is too small to be swapped."""
    return optimizer.optimizer_swapper.swap_params_info.get(master.ds_id)  # type: ignore[attr-defined]

"""Offload optimizer states and parameters to a disk of the node (ZeRO-Infinity, Rajbhandari et al. 2021).

Through its async_io op, DeepSpeed swaps whole sub-groups of ZeRO-3's optimizer states, and single partitions of
parameters. It keeps small ones in memory. The inner fields named here are those of deepspeed 0.19.8.
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

from pretrain.config.errors import ConfigError, Problem

log = logging.getLogger(__name__)

BUFFERS = 4
"""Buffers in the host's memory for the largest sub-group: master weights, two moments, gradients."""


@dataclass(frozen=True)
class NvmeScratch:
    """This rank's folder on the disk, and the buffers in memory through which parameters are swapped."""

    folder: Path
    partitions: int
    """Number of parameter partitions that are in memory at the same time."""
    partition_elements: int
    """Number of elements of the largest one."""


def require_async_io() -> None:
    """Compile DeepSpeed's async_io unless this machine has it already; raises ConfigError if that fails."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.ops.op_builder.pin_memory import PinMemoryBuilder
    from torch.utils.cpp_extension import _get_build_directory

    builder = AsyncIOBuilder()
    folder = Path(_get_build_directory(builder.name, verbose=False))
    try:
        with (folder.parent / f"{builder.name}.pretrain-lock").open("w") as lock:
            # One process at a time, even if nothing is left to compile: torch's own lock stays behind when a process is
            # killed, and all later processes would wait forever. The system releases this lock.
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in (PinMemoryBuilder.NAME, builder.name):  # async_io loads the other one too
                (folder.with_name(name) / "lock").unlink(missing_ok=True)
            if not (folder / f"{builder.name}.so").exists():
                log.info("compiling DeepSpeed's async_io, once on this machine; this takes minutes")
            builder.load(verbose=False)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ConfigError(
            [
                Problem(
                    "engine.offload",
                    "nvme",
                    "DeepSpeed's async_io cannot be compiled on this machine "
                    f"({reason[0] if reason else type(error).__name__})",
                    "install libaio's headers (libaio-dev) and a C++ compiler, or set cpu in its place",
                )
            ]
        ) from error


def own_folder(nvme_path: str, run: str, rank: int, needed: int, ranks_here: int) -> Path:
    """Create an empty folder for this rank's files. It is removed when the process ends.

    Raises ConfigError if it cannot be created, or if the disk has less than `needed` bytes for each of `ranks_here`.
    """
    shared = Path(nvme_path) / f"pretrain-{hashlib.sha256(str(Path(run).resolve()).encode()).hexdigest()[:12]}"
    folder = shared / f"rank-{rank}"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left over from a run that was killed
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
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def is_on_disk(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "swap_optimizer", False))


@contextlib.contextmanager
def in_memory(optimizer: Any, master: Tensor) -> Iterator[None]:
    """Context in which a swapped master and its moments are in memory. They are written back at its end."""
    swapped = is_on_disk(optimizer) and _swap_info(optimizer, master)
    if swapped:
        optimizer.optimizer_swapper.swap_in_optimizer_state(parameter=master)
    yield
    if swapped:
        optimizer.optimizer_swapper.swap_out_optimizer_state(parameter=master)


def reserve_for_shares(swapper: Any, dp: int) -> None:
    """Size DeepSpeed's buffer for updated parameters for this rank's parts, instead of whole parameters."""
    reserve = swapper.reserve_partitioned_swap_space
    swapper.reserve_partitioned_swap_space = lambda sizes: reserve([-(-size // dp) for size in sizes])


def write_parameters(optimizer: Any, sub_group: int) -> None:
    """Copy the master weights of a sub-group into its parameters, which are on the disk."""
    with in_memory(optimizer, optimizer.fp32_partitioned_groups_flat[sub_group]):
        optimizer._partitioned_params_swap_out(sub_group)


def on_disk(optimizer: Any, master: Tensor, state: Tensor) -> Tensor:
    """`state` (the master or one of its moments), or, if it is swapped, its file as a memory-mapped tensor.

    Writing into the tensor changes the file, also for direct reads.
    """
    if not is_on_disk(optimizer):
        return state
    swapped = _swap_info(optimizer, master)
    for context in swapped.tensors if swapped else ():
        if context.compute_tensor is state:
            return torch.from_file(context.swap_path, shared=True, size=swapped.numel(), dtype=master.dtype)
    return state


def _swap_info(optimizer: Any, master: Tensor) -> Any:
    """DeepSpeed's record of a swapped sub-group; None if it is too small to be swapped."""
    return optimizer.optimizer_swapper.swap_params_info.get(master.ds_id)  # type: ignore[attr-defined]

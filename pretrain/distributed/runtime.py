"""This process's place: device, threads, process group, random state, and an orderly end."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pretrain.config.engine import EngineConfig
from pretrain.config.errors import ConfigError, Problem
from pretrain.distributed import megatron_on_cpu
from pretrain.distributed.environment import set_variables
from pretrain.distributed.grid import ParallelLayout, world_from_environment
from pretrain.distributed.watchdog.watchdog import Watchdog
from pretrain.distributed.watchdog.watched import watched
from pretrain.outcome.failure import Stage

SLACK_SECONDS = 5.0
NCCL_SLACK_MINUTES = 2.0
MEETING_SLACK_SECONDS = 60.0

Item = TypeVar("Item")


@dataclass(frozen=True)
class Runtime:
    """The rank of this process, its device, and its watchdog."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    """Ranks on this machine."""
    device: torch.device
    group_timeout_minutes: float
    """The timeout of every process group."""
    watchdog: Watchdog | None = None
    """Watches for failures of any rank; None if the caller does that."""

    def count_steps(self, batches: Iterable[Item], step: int) -> Iterator[Item]:
        """Yield the batches and count their steps, which failure reports name. The first step is `step` + 1."""
        return iter(batches) if self.watchdog is None else self.watchdog.count_steps(batches, step)

    def begin_step(self, step: int) -> None:
        """Set the current step, which failure reports name."""
        if self.watchdog is not None:
            self.watchdog.begin_step(step)

    def moved(self) -> None:
        """Report progress of something that the main thread waits for at one place."""
        if self.watchdog is not None:
            self.watchdog.moved()

    def stage(self, stage: Stage) -> contextlib.AbstractContextManager[None]:
        """Set the stage of the main thread, which failure reports name, for the duration of the context."""
        return contextlib.nullcontext() if self.watchdog is None else self.watchdog.stage(stage)

    @property
    def gpu_name(self) -> str | None:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None

    @property
    def is_main(self) -> bool:
        """Whether this process prints for people and writes the files that are written once."""
        return self.rank == 0


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device for `wanted` = auto, cpu or cuda; raises ConfigError if cuda is set and torch sees no GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError([Problem("engine.device", wanted, "torch sees no GPU here", "use engine.device=auto or cpu")])
    use_gpu = wanted != "cpu" and torch.cuda.is_available()
    if use_gpu and local_rank >= torch.cuda.device_count():
        rule = f"local rank {local_rank} has no GPU of its own, torch sees {torch.cuda.device_count()} here"
        raise ConfigError([Problem("engine.device", wanted, rule, "start one process per GPU")])
    return torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")


def use_threads(config: EngineConfig, device: torch.device) -> None:
    """Let this process use its share of the cores: `engine.cpu_threads`, or those that its launcher left it."""
    if device.type == "cpu":
        torch.set_num_threads(config.cpu_threads or _threads_per_process())


@contextlib.contextmanager
def runtime(
    config: EngineConfig,
    store: dist.Store | None = None,
    *,
    layout: ParallelLayout | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[Runtime]:
    """Join the process group for as long as the context lasts; ranks meet in `store`, else at MASTER_ADDR, where a
    watchdog watches over them. `layout` is for its messages.

    Raises RankFailed if another rank failed. After a failure no collective is started, not even to leave: the other
    ranks may be gone.
    """
    rank, world_size, local_rank = world_from_environment()
    set_variables(layout or ParallelLayout(world_size))
    device = choose_device(config.device, local_rank)
    _quiet_vendors()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # DeepSpeed asks the environment, and its probing of accelerators takes a second.
        os.environ["DS_ACCELERATOR"] = "cpu"
        use_threads(config, device)
    on_gpu = device.type == "cuda"
    # gloo raises in the ranks that wait, NCCL ends their processes without an error message: the watchdog acts after
    # the one and before the other.
    minutes = config.timeout_minutes + (NCCL_SLACK_MINUTES if on_gpu else 0)
    limit = config.timeout_minutes * 60 + (0 if on_gpu else SLACK_SECONDS)
    with contextlib.ExitStack() as stack:
        watchdog = None
        if store is None:
            meeting = config.init_timeout_minutes * 60
            watchdog = Watchdog(rank, layout or ParallelLayout(world_size), limit, meeting, stop_requested)
            stack.enter_context(watched(watchdog))
        if store is None and world_size == 1:
            # A single rank uses a file instead of a rendezvous: it needs no port, which another run could hold.
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            store = dist.FileStore(str(Path(folder) / "store"), 1)
        elif store is None:
            # torch waits longer than the watchdog, which names the missing ranks.
            until = timedelta(minutes=config.init_timeout_minutes, seconds=MEETING_SLACK_SECONDS)
            store, _, _ = next(rendezvous("env://", rank, world_size, timeout=until))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(minutes=minutes),
        )
        if watchdog is not None:
            watchdog.have_met()
        if not on_gpu:
            megatron_on_cpu.redirect(device)  # after the ranks met: imports take long, and a rank may die in them
        yield Runtime(rank, world_size, local_rank, _local_size(), device, minutes, watchdog)
        dist.destroy_process_group()


def _threads_per_process() -> int:
    """The usable cores shared among this machine's processes, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    return max(1, len(os.sched_getaffinity(0)) // _local_size())


def _local_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _quiet_vendors() -> None:
    """Silence warnings about the vendors' own calls: a user cannot act on them (torch 2.13, deepspeed 0.19.8)."""
    for message in _VENDOR_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


_VENDOR_WARNINGS = (
    ".*(Transformer Engine|Apex).*",
    ".*(all_gather_into_tensor|reduce_scatter_tensor).*deprecated.*",
    "full scope is deprecated.*",
    "If you are using transformer_engine as the transformer implementation.*",
)

"""The steps that `bench` measures: the training loop itself, with nothing validated, recorded or saved."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.profiler import record_function

from pretrain.bench.ceilings import synchronize
from pretrain.bench.parts import UPDATE_MARK
from pretrain.distributed.groups import ProcessGroups
from pretrain.model.flops import TokenFlops
from pretrain.run.state import RunState
from pretrain.tracking.speed import StepClock
from pretrain.training.assembly import Trainer
from pretrain.training.profiling import StepProfiler

if TYPE_CHECKING:
    from pretrain.engine.interface import Engine, StepResult


class PerStepClock(StepClock):
    """A clock that keeps the values of every step; a step ends when the device has done its work."""

    def __init__(self, flops: TokenFlops, num_devices: int, device: torch.device) -> None:
        super().__init__(flops, num_devices, None)
        self.steps: list[dict[str, float]] = []
        self._device = device

    def end_step(self, tokens: int) -> None:
        synchronize(self._device)
        super().end_step(tokens)
        with self.outside():  # reading the peak takes a GPU long, while it is idle
            self.steps.append(self.take() | {"peak_bytes": peak_bytes(self._device)})


def run_steps(trainer: Trainer, count: int, profiler: StepProfiler | None) -> list[dict[str, float]]:
    """The times of each of `count` steps, by the names of the train record, and the peak of the memory until then."""
    clock = PerStepClock(trainer.token_flops, trainer.here.world_size, trainer.here.device)
    trainer.train(
        RunState(),
        engine=_WithUpdateMarks(trainer.engine),
        clock=clock,
        record=lambda kind, step, values: None,
        profiler=profiler,
        last_step=count,
    )
    return clock.steps


def start_peak(device: torch.device) -> None:
    """Reset the peak of allocated GPU memory and of resident memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # if it cannot be reset, the peak includes imports and the measured limits
        Path("/proc/self/clear_refs").write_text("5")


def peak_over_ranks(own: float, groups: ProcessGroups) -> float:
    """The maximum over all ranks."""
    most = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=groups.control)
    return float(most)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: allocated on the GPU, else resident for this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


class _WithUpdateMarks:
    """An engine that marks the optimizer's work in the trace of each step."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def train_step(self, tokens: torch.Tensor, lr: float, mask: torch.Tensor | None = None) -> "StepResult":
        self._engine.before_next_update(_mark_update)
        return self._engine.train_step(tokens, lr, mask)


def _mark_update() -> None:
    with record_function(UPDATE_MARK):
        pass

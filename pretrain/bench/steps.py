"""The steps that are measured: the training loop itself, with nothing validated, recorded or saved."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.profiler import record_function

from data_pipeline.stream.mixture import TrainingData
from pretrain.bench.ceilings import synchronize
from pretrain.bench.parts import UPDATE_MARK
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.runtime import Runtime
from pretrain.model.flops import TokenFlops, token_flops
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.speed import StepClock
from pretrain.training.data import batches_from
from pretrain.training.loop import NothingSaved, run_loop
from pretrain.training.profiling import StepProfiler

if TYPE_CHECKING:
    from pretrain.engine.interface import Engine, StepResult


class EachStep(StepClock):
    """Keeps the values of every step, which ends when the device has done its work."""

    def __init__(self, flops: TokenFlops, num_devices: int, device: torch.device) -> None:
        super().__init__(flops, num_devices, None)
        self.steps: list[dict[str, float]] = []
        self._device = device

    def end_step(self, tokens: int) -> None:
        synchronize(self._device)
        super().end_step(tokens)
        with self.outside():  # a GPU, which has nothing to do meanwhile, takes long to tell
            self.steps.append(self.take() | {"peak_bytes": peak_bytes(self._device)})


def run_steps(
    config: RunConfig,
    dataset: TrainingData,
    engine: "Engine",
    groups: ProcessGroups,
    here: Runtime,
    count: int,
    profiler: StepProfiler | None,
) -> list[dict[str, float]]:
    """Times of each of `count` steps, as the train record calls them, and the peak of the memory until then."""
    clock = EachStep(token_flops(config.model, dataset.manifest.tokenizer.vocab_size), here.world_size, here.device)
    batches = batches_from(0, config, dataset, groups)
    run_loop(
        config=config,
        engine=_Marking(engine),
        batches=here.count_steps(batches, 0),
        state=RunState(),
        length=RunLength.of(config),
        last_step=count,
        samples_counted_here=groups.tp_rank == groups.pp_rank == 0,
        clock=clock,
        record=lambda kind, step, values: None,
        evaluate=lambda max_samples: {},
        checkpoints=NothingSaved(),
        stop_requested=lambda: False,
        control=groups.control,
        profiler=profiler,
        begin_step=here.begin_step,
    )
    return clock.steps


def start_peak(device: torch.device) -> None:
    """Forget what was allocated on the GPU, or resident, before."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # where it may not be reset, imports and the measured limits are in it
        Path("/proc/self/clear_refs").write_text("5")


def peak_over_ranks(own: float, groups: ProcessGroups) -> float:
    """Of the rank that has the most."""
    most = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=groups.control)
    return float(most)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: allocated on the GPU, else resident for this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


class _Marking:
    """An engine's steps, in whose trace the optimizer's work is marked."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def train_step(self, tokens: torch.Tensor, lr: float, mask: torch.Tensor | None = None) -> "StepResult":
        self._engine.before_next_update(_mark_update)
        return self._engine.train_step(tokens, lr, mask)


def _mark_update() -> None:
    with record_function(UPDATE_MARK):
        pass

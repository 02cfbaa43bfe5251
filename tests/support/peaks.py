"""Peaks of one rank of any layout, measured on the pretend GPU without computing, beside the plan.

    run_ranks(measured, 1, cases, joined=False)

torch's fake process groups let one process stand for one rank of any number.
"""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from pretrain.config.load import load_run_config
from pretrain.planner.memory import Modes, StageMemory, plan_memory

EOD_ID = 0


@dataclass(frozen=True)
class Case:
    """A rank of a run."""

    family: str
    """For the summary."""
    overrides: tuple[str, ...]
    world_size: int
    rank: int
    modes: Modes

    @property
    def name(self) -> str:
        modes = f"{self.modes.grad_reduction}/{self.modes.param_gather}"
        shown = " ".join(text for text in self.overrides if "vocab_size" not in text)
        return f"{shown} (rank {self.rank} of {self.world_size}, {modes})"


@dataclass(frozen=True)
class Found:
    """Bytes."""

    peak: int
    between_steps: int
    moments: dict[str, int]
    """The most while parameters are gathered, while micro-batches run, while gradients are reduced, in the update."""


def planned(case: Case) -> StageMemory:
    config = load_run_config(["tracking=off", *case.overrides])
    stage = case.rank // (case.world_size // config.parallel.pp)
    return plan_memory(config, config.tokenizer.vocab_size, case.world_size, case.modes)[stage]


def measured(cases: Sequence[Case]) -> list[Found]:
    """Run in a process of its own: it stands for one rank after the other."""
    from pretrain.distributed import megatron_on_cpu
    from pretrain.pretend import device
    from pretrain.pretend.machine import on_pretend_gpu

    warnings.simplefilter("ignore")
    with on_pretend_gpu(compute=False, alone=True):
        megatron_on_cpu.redirect(device.device())
        return [_measured(case) for case in cases]


def _measured(case: Case) -> Found:
    from pretrain.distributed.grid import ParallelLayout
    from pretrain.distributed.groups import build_groups, forget_groups
    from pretrain.pretend.device import device
    from pretrain.pretend.ledger import ledger

    config = load_run_config(["tracking=off", *case.overrides])
    with _alone(case):
        from pretrain.engine import build

        layout = ParallelLayout.of(config.model, config.parallel, case.world_size)
        groups = build_groups(layout, 1, 10, device(), vp=config.parallel.vp)
        gc.collect()
        base = ledger.now
        engine: Any = build.build_engine(config, config.tokenizer.vocab_size, groups, device(), eod_id=EOD_ID)
        own = config.train.global_batch_size // layout.replicas
        tokens = torch.ones(own, config.model.seq_length + 1, dtype=torch.int64)
        if config.data.document_mask:
            tokens[:, :: config.model.seq_length // 4] = EOD_ID
        engine.train_step(tokens, 1e-3)
        between = ledger.now - base
        moments = {name: most - base for name, most in _moments(engine, tokens).items()}
        del engine, groups
        forget_groups()
    gc.collect()
    return Found(max(moments.values()), between, moments)


def _moments(engine: Any, tokens: torch.Tensor) -> dict[str, int]:
    from pretrain.engine import zero
    from pretrain.pretend.ledger import ledger

    found: dict[str, int] = {}
    moment = "gather"

    def enter(name: str) -> None:
        nonlocal moment
        found[moment], moment = ledger.peak, name
        ledger.begin()

    run, reduce = zero.run_schedule, engine.optimizer.reduce_gradients

    def run_schedule(*args: Any, **options: Any) -> torch.Tensor:
        enter("passes")
        totals = run(*args, **options)
        enter("reduction")
        return totals

    def reduce_gradients() -> None:
        reduce()
        enter("update")

    engine.optimizer.reduce_gradients = reduce_gradients
    ledger.begin()
    with mock.patch.object(zero, "run_schedule", run_schedule):
        engine.train_step(tokens, 1e-3)
    enter("end")
    return found


@contextlib.contextmanager
def _alone(case: Case) -> Iterator[None]:
    """Groups of all ranks, initial values that are not computed, and the case's modes."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.distributed.vendor_imports import megatron_imports
    from pretrain.pretend.device import host_groups

    with megatron_imports():
        from pretrain.engine import build
        from pretrain.model.init import InitialValue

    place = {"RANK": case.rank, "WORLD_SIZE": case.world_size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in place.items()})
    with (
        mock.patch.object(InitialValue, "write", lambda self, out, rows, start=0: None),
        mock.patch.object(build, "modes_of", lambda *_: case.modes),
        mock.patch.object(build, "smallest_memory", lambda *_: 1 << 60),
    ):
        dist.init_process_group("fake", store=FakeStore(), rank=case.rank, world_size=case.world_size)
        yield
        dist.destroy_process_group()
    host_groups.clear()  # the next case's groups have the same names

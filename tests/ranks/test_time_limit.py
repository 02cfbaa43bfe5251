"""The loop with train.max_minutes: rank 0's clock decides for all ranks, and a replay takes what it decided."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from data_pipeline.stream.loader import Batch
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import StepResult
from pretrain.model.flops import token_flops
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.speed import StepClock
from pretrain.training import loop
from pretrain.training.loop import NeverSave, run_loop
from pretrain.training.time_limit import EarlierCuts, TimeLimit, earlier_cuts, time_limit_of
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import join

CONFIG = run_config("gpt", "train.max_steps=100", "train.max_minutes=1", "evaluation.every_steps=0")
SECONDS = 2.0
"""A step of rank 0; those of other ranks take no time."""


class Unmoved:
    """An engine whose steps do nothing."""

    def train_step(self, tokens: Any, lr: float, mask: Any = None) -> StepResult:
        return StepResult(1.0, 1.0, True, 1.0, 0.0, 0.0)


class Clock:
    """Replaces the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def trained(
    here: Runtime, control: Any, limit: TimeLimit | None, last_step: int | None
) -> tuple[RunState, list[dict[str, Any]]]:
    clock, size = Clock(), CONFIG.train.global_batch_size
    loop.time = clock  # type: ignore[assignment]

    def batches() -> Iterator[Batch]:
        for position in itertools.count(0, size):
            yield Batch(torch.zeros(1, 2), None, position, position + size, 0, position)
            clock.now += SECONDS if here.rank == 0 else 0

    length = RunLength.of(CONFIG)
    records: list[dict[str, Any]] = []
    state, outcome = run_loop(
        config=CONFIG,
        engine=Unmoved(),  # type: ignore[arg-type]
        batches=batches(),
        state=RunState(),
        length=length,
        samples_counted_here=True,
        clock=StepClock(token_flops(CONFIG.model, 100), here.world_size, None),
        record=lambda kind, step, values: records.append({"kind": kind, "step": step, **values}),
        evaluate=lambda max_samples: {},
        checkpoints=NeverSave(),
        stop_requested=lambda: False,
        control=control,
        time_limit=limit or time_limit_of(length, EarlierCuts()),
        last_step=last_step,
    )
    assert outcome == "finished"
    return state, records


def twice(here: Runtime) -> list[tuple[RunState, list[dict[str, Any]]]]:
    control, real = join(here, CONFIG).control, loop.time
    try:
        first = trained(here, control, None, None)
        return [first, trained(here, control, earlier_cuts(first[1], RunState(), RunLength.of(CONFIG)), first[0].step)]
    finally:
        loop.time = real


def test_rank_0_decides_the_end_and_a_replay_repeats_it() -> None:
    ranks = run_ranks(twice, 2)
    for (state, records), (_, again) in ranks:
        assert 28 <= state.step <= 32 and state.cut_minutes == 1
        rates = [record["lr"] for record in records if record["kind"] == "train"]
        assert rates[-1] == pytest.approx(CONFIG.optim.lr * CONFIG.lr_schedule.final_ratio)
        assert [record["lr"] for record in again if record["kind"] == "train"] == rates
    ((one, _), _), ((other, _), _) = ranks
    assert (one.step, one.cut_tokens) == (other.step, other.cut_tokens)


class Late:
    """Cuts the run to what it has done already."""

    def cut(self, state: RunState, seconds: float) -> int:
        return state.tokens


def cut_to_the_past(here: Runtime) -> RunState:
    real = loop.time
    try:
        return trained(here, join(here, CONFIG).control, Late(), 5)[0]
    finally:
        loop.time = real


def test_a_run_is_never_cut_to_what_it_has_done() -> None:
    (state,) = run_ranks(cut_to_the_past, 1)
    assert state.step == 5 and state.cut_tokens is None

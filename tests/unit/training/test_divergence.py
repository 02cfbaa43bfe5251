"""Which lost steps end a run: counted as pure arithmetic over the results of steps."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from data_pipeline.stream.loader import Batch
from pretrain.config.errors import TrainingDiverged
from pretrain.config.run import RunConfig
from pretrain.engine.interface import StepResult
from pretrain.run.state import RunState
from pretrain.training.divergence import count_faults, refuse_divergence
from tests.support.models import run_config

BATCH = Batch(torch.zeros(0), None, position=0, next_position=8, epoch=0, digest=0)


def config_of(precision: str, allowed: int = 0) -> RunConfig:
    return run_config("gpt", f"train.max_bad_steps={allowed}", "engine.loss_scale.minimum=1", precision=precision)


def result_of(loss: float = 5.0, *, applied: bool, scale: float = 1.0) -> StepResult:
    return StepResult(loss, 1.0 if applied else math.inf, applied, scale, 0.0, 0.0)


def run(results: Iterable[StepResult], config: RunConfig, state: RunState | None = None) -> RunState:
    state = state or RunState()
    for result in results:
        state = count_faults(state, result, config.engine)
        refuse_divergence(state, result, BATCH, config, lambda: "step-00000004")
    return state


GOOD, AT_LEAST = result_of(applied=True), result_of(applied=False)
FALLING = [result_of(applied=False, scale=2.0**power) for power in range(16, 0, -1)]


def test_overflows_above_the_least_scale_do_not_end_a_run() -> None:
    state = run([*FALLING, GOOD, *FALLING], config_of("fp16"))
    assert (state.overflow_steps, state.bad_steps) == (2 * len(FALLING), 0)


@pytest.mark.parametrize("allowed", [0, 3])
def test_endless_overflow_at_the_least_scale_ends_the_run(allowed: int) -> None:
    config = config_of("fp16", allowed)
    state = run([*FALLING, *[AT_LEAST] * allowed], config)
    assert state.bad_steps == allowed
    with pytest.raises(TrainingDiverged) as raised:
        run([AT_LEAST], config, replace(state, step=12))
    assert raised.value.step == 12
    assert "loss 5.0, gradient norm inf, at the least loss scale (engine.loss_scale.minimum=1.0)" in str(raised.value)
    assert f"{allowed + 1} bad steps so far, train.max_bad_steps={allowed} allowed" in str(raised.value)


def test_the_count_survives_a_resume() -> None:
    config = config_of("fp16", allowed=2)
    saved = json.dumps(run([*FALLING, AT_LEAST, AT_LEAST], config).to_json())
    resumed = RunState.from_json(json.loads(saved))
    assert (resumed.overflow_steps, resumed.bad_steps) == (len(FALLING), 2)
    with pytest.raises(TrainingDiverged):
        run([AT_LEAST], config, resumed)


def test_a_state_saved_without_the_count_is_read() -> None:
    values: dict[str, Any] = {**RunState(step=4, bad_steps=1).to_json()}
    del values["overflow_steps"]
    assert RunState.from_json(values) == RunState(step=4, bad_steps=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_loss_that_is_not_finite_is_bad_at_any_scale(precision: str) -> None:
    nan = result_of(math.nan, applied=False, scale=1024.0)
    assert run([nan], config_of(precision, allowed=1)).bad_steps == 1
    with pytest.raises(TrainingDiverged) as raised:
        run([result_of(math.nan, applied=True, scale=1024.0)], config_of(precision, allowed=9))
    assert "least loss scale" not in str(raised.value)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_loss_scale_an_infinite_gradient_is_bad(precision: str) -> None:
    state = run([AT_LEAST, GOOD], config_of(precision, allowed=1))
    assert (state.overflow_steps, state.bad_steps) == (0, 1)

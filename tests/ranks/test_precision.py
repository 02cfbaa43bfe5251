"""bf16 and fp16: distance from fp32, precision of accumulation, and overflows."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import StepResult
from pretrain.engine.schedule import positions_of
from pretrain.model.parameters import logical_parts
from tests.support.models import VOCAB_SIZE, batch_of, run_config, three_micro_batches
from tests.support.ranks import run_ranks
from tests.support.training import plain_stage, start, train, whole_state

SETTINGS = ("optim.clip_grad_norm=0.2", "optim.eps=1e-4", *three_micro_batches(2))
# A scale at which gradients of these models overflow, as they do at the start of every fp16 run.
OVERFLOWING = ("engine.loss_scale.initial=4194304", "engine.loss_scale.hysteresis=2")


def steps_of(here: Runtime, config: RunConfig, num_steps: int) -> list[StepResult]:
    return train(here, config, start(here, config), range(num_steps))


@functools.cache
def fp32_steps(num_steps: int) -> list[StepResult]:
    (results,) = run_ranks(steps_of, 1, run_config("gpt", *SETTINGS), num_steps)
    return results


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_stay_close_to_fp32(precision: str, stage: int) -> None:
    config = run_config("gpt", *SETTINGS, precision=precision, zero_stage=stage)
    for results in run_ranks(steps_of, 2, config, 5):
        assert all(result.applied for result in results)
        # Measured: loss within 2e-4 and norm within 3e-3 (bf16 keeps 8 bits, fp16 11).
        for result, expected in zip(results, fp32_steps(5), strict=True):
            assert result.loss == pytest.approx(expected.loss, rel=2e-3)
            assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-2)


# Not tied: the sum of a tied embedding's two gradients is rounded in each micro-batch.
ACCUMULATION = ("llama", "optim.clip_grad_norm=0", "train.global_batch_size=64", "train.micro_batch_size=1")
# Measured: summing 64 micro-batches in bf16 gives an error of at least 6e-3, rounding a finished sum to bf16 2e-3.
ACCUMULATION_ERROR = 1e-4


def accumulated_gradient(here: Runtime, config: RunConfig) -> tuple[float, dict[str, np.ndarray]]:
    """Norm and gradient of one step, the latter read from Adam's first moment, which starts at 0."""
    engine = start(here, config)
    (result,) = train(here, config, engine, [0])
    share = 1 - config.optim.beta1
    state = whole_state(engine)
    moments = {name.removeprefix("exp_avg/"): value for name, value in state.items() if name.startswith("exp_avg/")}
    return result.grad_norm, {name: value / share for name, value in moments.items()}


def exact_gradient(here: Runtime, config: RunConfig, world_size: int) -> dict[str, np.ndarray]:
    """The same micro-batches in bf16 by plain torch, their gradients summed in fp64."""
    stage = plain_stage(here, config)
    named = {local.name: parameter for parameter, local in stage.local.items()}
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in named.items()}
    batch = torch.from_numpy(batch_of(0, config.train.global_batch_size, config))
    parts = [part for rank in range(world_size) for part in batch[rank::world_size].split(1)]
    for part in parts:
        stage.zero_grad()
        inputs = part[:, :-1]
        loss = stage(0, inputs, positions_of(inputs), None, labels=part[:, 1:]).mean()
        (loss / (len(parts) // world_size)).backward()
        for name, value in named.items():
            total[name] += value.grad / world_size
    return {
        part.name: total[local.name].flatten()[part.offset :][: math.prod(part.shape)].view(part.shape).numpy()
        for local in stage.local.values()
        for part in logical_parts(local, model=config.model, vocab_size=VOCAB_SIZE, tp=1, tp_rank=0)
    }


@functools.cache
def expected_gradient(world_size: int) -> dict[str, np.ndarray]:
    (gradient,) = run_ranks(exact_gradient, 1, run_config(*ACCUMULATION, precision="bf16"), world_size)
    return gradient


@pytest.mark.parametrize(("stage", "world_size"), [(0, 2), (1, 2), (1, 1), (2, 2), (3, 2), (3, 1)])
def test_bf16_micro_batches_are_summed_in_fp32(stage: int, world_size: int) -> None:
    expected = expected_gradient(world_size)
    config = run_config(*ACCUMULATION, precision="bf16", zero_stage=stage)
    squares = sum(float((value**2).sum()) for value in expected.values())
    for norm, gradient in run_ranks(accumulated_gradient, world_size, config):
        assert gradient.keys() == expected.keys()
        error = sum(float(((gradient[name] - value) ** 2).sum()) for name, value in expected.items())
        assert math.sqrt(error / squares) < ACCUMULATION_ERROR
        assert norm == pytest.approx(math.sqrt(squares), rel=ACCUMULATION_ERROR)


@pytest.mark.parametrize("stage", range(4))
def test_fp16_finds_its_loss_scale_and_then_trains(stage: int) -> None:
    config = run_config("gpt", *SETTINGS, *OVERFLOWING, precision="fp16", zero_stage=stage)
    per_rank = run_ranks(steps_of, 2, config, 8)
    skipped = [[not result.applied for result in results] for results in per_rank]
    scales = [[result.loss_scale for result in results] for results in per_rank]
    assert skipped[0] == skipped[1] and scales[0] == scales[1]
    num_skipped = skipped[0].index(False)
    assert 2 <= num_skipped < 7 and sum(skipped[0]) <= 6, skipped[0]
    # Hysteresis 2: the first overflow keeps the scale, each later one halves it.
    overflows = [sum(skipped[0][:step]) for step in range(8)]
    assert scales[0] == [2.0**22 / 2 ** max(0, before - 1) for before in overflows]
    assert all(math.isinf(result.grad_norm) for result in per_rank[0][:num_skipped])
    first = per_rank[0][num_skipped]
    (alone,) = run_ranks(gradient_norm_at_start, 1, run_config("gpt", *SETTINGS), num_skipped)
    assert first.grad_norm == pytest.approx(alone, rel=1e-2), "the norm must be that of unscaled gradients"


@pytest.mark.parametrize("stage", range(4))
def test_an_overflow_at_the_minimum_loss_scale_skips_the_step(stage: int) -> None:
    config = run_config(
        "gpt", *SETTINGS, *OVERFLOWING, "engine.loss_scale.minimum=4194304", precision="fp16", zero_stage=stage
    )
    (results,) = run_ranks(steps_of, 1, config, 4)
    assert [result.applied for result in results] == [False] * 4
    assert [result.loss_scale for result in results] == [2.0**22] * 4


def weights_after(here: Runtime, config: RunConfig) -> tuple[list[float], dict[str, np.ndarray]]:
    """The loss scale of each of six steps, and the weights after them."""
    engine = start(here, config)
    scales = [result.loss_scale for result in train(here, config, engine, range(6))]
    return scales, {name: value for name, value in whole_state(engine).items() if name.startswith("weight/")}


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("stage", range(4))
def test_gradients_are_unscaled_by_the_scale_of_their_step(stage: int, clip: float) -> None:
    given = (*SETTINGS, f"optim.clip_grad_norm={clip}", "engine.loss_scale.initial=1024")
    grows, stays = (
        run_ranks(weights_after, 1, run_config("gpt", *given, window, precision="fp16", zero_stage=stage))[0]
        for window in ("engine.loss_scale.window=2", "engine.loss_scale.window=1000")
    )
    assert grows[0][-1] > 1024 and set(stays[0]) == {1024}
    for name, value in grows[1].items():
        # Measured: 1e-5, because some gradients are too small for fp16; halved gradients give 1e-3.
        np.testing.assert_allclose(value, stays[1][name], rtol=0, atol=1e-4, err_msg=name)


def gradient_norm_at_start(here: Runtime, config: RunConfig, step: int) -> float:
    """Gradient norm of the batch of `step` with the initial weights."""
    (result,) = train(here, config, start(here, config), [step])
    return result.grad_norm


@dataclass(frozen=True)
class Planted:
    results: list[StepResult]
    change: float
    """Largest change of any weight by the step with the planted fault."""
    later_change: float


def plant_infinity(here: Runtime, config: RunConfig) -> Planted:
    """An infinite gradient only on the last rank, in one micro-batch of the second of three steps."""
    engine = start(here, config)
    results = train(here, config, engine, [0])
    before = whole_state(engine)
    handle = None
    if here.rank == here.world_size - 1:
        norm = engine.stage.chunks[-1].decoder.final_layernorm
        handle = norm.register_full_backward_hook(lambda module, inner, outer: (inner[0] * math.inf,))
    results += train(here, config, engine, [1])
    if handle is not None:
        handle.remove()
    between = whole_state(engine)
    results += train(here, config, engine, [2])
    after = whole_state(engine)
    return Planted(results, _largest_change(before, between), _largest_change(between, after))


def _largest_change(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(after[name] - value).max()) for name, value in before.items())


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_infinite_gradient_on_one_rank_skips_the_step_on_all(precision: str, stage: int) -> None:
    config = run_config("gpt", *SETTINGS, "engine.loss_scale.hysteresis=1", precision=precision, zero_stage=stage)
    for planted in run_ranks(plant_infinity, 2, config):
        assert [result.applied for result in planted.results] == [True, False, True]
        assert [math.isinf(result.grad_norm) for result in planted.results] == [False, True, False]
        assert planted.change == 0.0
        assert 0.0 < planted.later_change < 0.1
        if precision == "fp16":
            assert [result.loss_scale for result in planted.results] == [65536, 65536, 32768]

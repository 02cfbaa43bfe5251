"""bf16 and fp16 in parallel layouts: some are bit-equal to one process, the others close, and overflows are global."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from tests.support.models import batches, run_config
from tests.support.parts import full_except
from tests.support.ranks import run_ranks
from tests.support.training import start, train, whole_state

SETTINGS = ("optim.clip_grad_norm=0.2", "optim.eps=1e-4", "model.num_layers=4")
# Not tied: one process sums a tied embedding's two gradients in each micro-batch, stages sum them once per step.
MODEL = "llama"
MICRO = ("engine.grad_reduction=per_micro_batch", "engine.param_gather=per_micro_batch")
ONCE = ("engine.grad_reduction=per_step", "engine.param_gather=per_step")


@dataclass(frozen=True)
class Trained:
    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]


def trained(here: Runtime, config: RunConfig) -> Trained:
    engine = start(here, config)
    results = train(here, config, engine, range(5))
    assert all(result.applied for result in results)
    state = whole_state(engine)
    weights = {name: value for name, value in state.items() if name.startswith("weight/")}
    return Trained([r.loss for r in results], [r.grad_norm for r in results], weights)


def config_of(precision: str, dp: int, *overrides: str, micro_batches: int = 4, **values: object) -> RunConfig:
    return run_config(MODEL, *SETTINGS, *batches(dp, micro_batches), *overrides, precision=precision, **values)


@functools.cache
def by_one(precision: str, zero: int, micro_batches: int, *overrides: str) -> Trained:
    config = config_of(precision, 1, *overrides, micro_batches=micro_batches, zero_stage=zero)
    return run_ranks(trained, 1, config)[0]


WAYS = [(0, ()), (1, ()), (2, MICRO), (2, ONCE), (3, MICRO), (3, ONCE)]


@pytest.mark.parametrize(("zero", "ways"), WAYS)
@pytest.mark.parametrize(
    ("world_size", "shape"),
    [(2, {"pp": 2}), pytest.param(4, {"pp": 4}, marks=pytest.mark.full), (2, {"pp": 2, "vp": 2})],
)
def test_bf16_stages_are_bit_equal_to_one_process(
    world_size: int, shape: dict[str, int], zero: int, ways: tuple[str, ...]
) -> None:
    expected = by_one("bf16", zero, 4, *ways)
    for run in run_ranks(trained, world_size, config_of("bf16", 1, *ways, zero_stage=zero, **shape)):
        assert run.losses == expected.losses
        assert run.norms == expected.norms
        assert all(np.array_equal(run.weights[name], value) for name, value in expected.weights.items())


@pytest.mark.parametrize(("zero", "ways"), WAYS)
def test_bf16_ranks_with_fp32_sums_equal_one_process(zero: int, ways: tuple[str, ...]) -> None:
    """Micro-batches of one sample are equal on every rank, and the order of two addends does not matter."""
    config, one = (
        run_config(MODEL, *SETTINGS, *batches(dp, 2 // dp, 2), *ways, precision="bf16", zero_stage=zero)
        for dp in (2, 1)
    )
    (expected,) = run_ranks(trained, 1, one)
    for run in run_ranks(trained, 2, config):
        assert run.losses == expected.losses
        assert run.norms == expected.norms
        assert all(np.array_equal(run.weights[name], value) for name, value in expected.weights.items())


@pytest.mark.parametrize(
    ("world_size", "shape"),
    [
        pytest.param(2, {"tp": 2, "zero_stage": 1}, marks=pytest.mark.full),
        (4, {"tp": 2, "pp": 2, "sp": True, "zero_stage": 3}),
        pytest.param(4, {"pp": 2, "zero_stage": 0}, marks=pytest.mark.full),
        (4, {"pp": 2, "zero_stage": 1}),
        pytest.param(2, {"cp": 2, "zero_stage": 3}, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_in_any_layout_stay_close_to_fp32(precision: str, world_size: int, shape: dict[str, int]) -> None:
    expected = by_one("fp32", 0, 4)
    dp = world_size // (shape.get("tp", 1) * shape.get("cp", 1) * shape.get("pp", 1))
    for run in run_ranks(trained, world_size, config_of(precision, dp, micro_batches=4, **shape)):
        assert run.losses == pytest.approx(expected.losses, rel=2e-3)
        assert run.norms == pytest.approx(expected.norms, rel=1e-2)


@pytest.mark.parametrize(
    ("zero", "ways", "rounds"),
    [
        (1, (), True),
        (2, ("engine.grad_reduction=per_step",), True),
        (2, ("engine.grad_reduction=per_micro_batch",), False),
        (3, MICRO, False),
        (3, ONCE, False),
    ],
)
def test_offloaded_sums_are_rounded_only_where_documented(zero: int, ways: tuple[str, ...], rounds: bool) -> None:
    config = config_of("bf16", 2, *ways, zero_stage=zero)
    offloaded = config_of("bf16", 2, *ways, "engine.offload.optimizer=cpu", zero_stage=zero)
    (expected, _), (run, _) = run_ranks(trained, 2, config), run_ranks(trained, 2, offloaded)
    assert run.losses[0] == expected.losses[0]
    assert run.norms == pytest.approx(expected.norms, rel=2e-3)
    # Only the norm may differ in its last bit, because its squares are summed shard by shard.
    assert (abs(run.norms[0] / expected.norms[0] - 1) > 1e-6) == rounds


@dataclass(frozen=True)
class Planted:
    applied: list[bool]
    norms: list[float]
    scales: list[float]
    change: float
    """Largest change of any weight by the step with the planted infinity."""


def plant(here: Runtime, config: RunConfig, culprit: int) -> Planted:
    """An infinite gradient on only one rank in the second of three steps."""
    engine = start(here, config)
    results = train(here, config, engine, [0])
    before = whole_state(engine)
    handle = None
    if here.rank == culprit:
        layer = engine.stage.chunks[0].decoder.layers[0]
        handle = layer.pre_mlp_layernorm.register_full_backward_hook(
            lambda module, inner, outer: (inner[0] * math.inf,)
        )
    results += train(here, config, engine, [1])
    if handle is not None:
        handle.remove()
    after = whole_state(engine)
    results += train(here, config, engine, [2])
    change = max(float(np.abs(after[name] - value).max()) for name, value in before.items())
    applied, norms = [r.applied for r in results], [r.grad_norm for r in results]
    return Planted(applied, norms, [r.loss_scale for r in results], change)


@pytest.mark.parametrize(
    ("shape", "culprit"), [({"pp": 2}, 3), ({"tp": 2, "pp": 2}, 0)], ids=["pp2-dp2-last", "tp2-pp2-first"]
)
@pytest.mark.parametrize(
    ("precision", "zero"),
    full_except(
        [*(("fp16", zero) for zero in range(4)), ("fp32", 0), ("fp32", 2)], [("fp16", 0), ("fp16", 3), ("fp32", 2)]
    ),
)
def test_an_overflow_in_one_stage_skips_the_step_everywhere(
    precision: str, shape: dict[str, int], zero: int, culprit: int
) -> None:
    dp = 4 // (shape.get("tp", 1) * shape["pp"])
    scale = "engine.loss_scale.hysteresis=1", "engine.loss_scale.initial=1024"
    config = config_of(precision, dp, *scale, zero_stage=zero, **shape)
    for rank in run_ranks(plant, 4, config, culprit):
        assert rank.applied == [True, False, True]
        assert [math.isinf(norm) for norm in rank.norms] == [False, True, False]
        assert rank.change == 0.0
        if precision == "fp16":
            assert rank.scales == [1024, 1024, 512]

"""Recomputed activations equal those of the forward pass, dropout included, and dropout masks follow Megatron's
rules."""

import functools
from dataclasses import dataclass

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import join, start, train, whole_state

DROPOUT = ("model.hidden_dropout=0.2", "model.attention_dropout=0.2", "optim.clip_grad_norm=0.2", "model.num_layers=4")
LAYOUTS = {
    "one": (1, {"zero_stage": 1}),
    "pp2-dp2-zero3": (4, {"zero_stage": 3, "pp": 2}),
    "tp2-pp2-sp-zero2": (4, {"zero_stage": 2, "tp": 2, "pp": 2, "sp": True}),
    "pp2-vp2-zero3-held": (2, {"zero_stage": 3, "pp": 2, "vp": 2, "param_gather": "per_step"}),
}
WAYS = {
    "full-1": ("granularity=full", "num_layers=1"),
    "full-2": ("granularity=full", "num_layers=2"),
    "block": ("granularity=full", "method=block", "num_layers=1"),
    "attention": ("granularity=selective",),
    "both": ("granularity=selective", "modules=[core_attn,mlp]"),
}


def config_of(layout: str, *recompute: str) -> tuple[int, RunConfig]:
    world_size, values = LAYOUTS[layout]
    dp = world_size // (values.get("tp", 1) * values.get("pp", 1))
    overrides = [f"engine.recompute.{setting}" for setting in recompute]
    return world_size, run_config("gpt", *DROPOUT, *batches(dp), *overrides, **values)


@dataclass(frozen=True)
class Numbers:
    steps: list[tuple[float, float]]
    """Loss and gradient norm."""
    weights: bytes
    forwards: int
    """Forward passes of the first layer's feed-forward block, on this rank."""


def numbers(here: Runtime, config: RunConfig) -> Numbers:
    engine = start(here, config)
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    engine.stage.chunks[0].decoder.layers[0].mlp.register_forward_hook(count)
    steps = [(result.loss, result.grad_norm) for result in train(here, config, engine, range(3))]
    state = whole_state(engine)
    return Numbers(steps, b"".join(state[name].tobytes() for name in sorted(state)), forwards)


@functools.cache
def kept(layout: str) -> Numbers:
    return run_ranks(numbers, *config_of(layout))[0]


@pytest.mark.parametrize(
    ("layout", "way"),
    [("one", way) for way in WAYS]
    + [(layout, way) for layout in LAYOUTS for way in ("full-1", "both") if layout != "one"],
)
def test_recomputed_activations_change_no_bit(layout: str, way: str) -> None:
    found = run_ranks(numbers, *config_of(layout, *WAYS[way]))[0]
    assert found.steps == kept(layout).steps
    assert found.weights == kept(layout).weights
    assert found.forwards == kept(layout).forwards * (1 if way == "attention" else 2)


@dataclass(frozen=True)
class Draws:
    """The first numbers that a rank draws from its two random streams."""

    whole: list[float]
    """From the stream for activations that all tensor-parallel ranks share."""
    split: list[float]
    """From the stream for each rank's own heads, or its part of the sequence."""


def draws(here: Runtime, config: RunConfig) -> Draws:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    join(here, config)
    with get_cuda_rng_tracker().fork():
        split = torch.rand(4).tolist()
    return Draws(torch.rand(4).tolist(), split)


def test_dropout_is_equal_on_replicas_and_differs_elsewhere() -> None:
    """tp2 x pp2 x dp2, tensor-parallel peers next to each other."""
    found = run_ranks(draws, 8, run_config("gpt", tp=2, pp=2))
    for even, odd in zip(found[::2], found[1::2], strict=True):
        assert even.whole == odd.whole
    assert len({tuple(rank.whole) for rank in found}) == 4, "data-parallel ranks and stages differ"
    assert len({tuple(rank.split) for rank in found}) == 8

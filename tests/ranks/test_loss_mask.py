"""Masked targets do not affect loss, gradients and validation, at any position of a global batch."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import StepResult
from pretrain.engine.schedule import positions_of
from pretrain.optim.param_groups import parameter_groups
from tests.ranks.test_parity import Layout
from tests.support.models import batch_of
from tests.support.ranks import run_ranks
from tests.support.training import LR, own_batch, plain_stage, start, whole_state

STEPS = range(3)
HELD_OUT = 9


@dataclass(frozen=True)
class TensorStats:
    losses: list[float]
    norms: list[float]
    totals: list[float]
    """Sum of losses and number of targets of a validation before the first step."""


def mask_of(step: int, config: RunConfig) -> Tensor:
    """Mask [n, s] of the global batch: the first sample has no target that counts, later ones have more and more."""
    samples, length = config.train.global_batch_size, config.model.seq_length
    share = np.linspace(0, 1, samples)[:, None]
    return torch.from_numpy(np.random.default_rng(step).random((samples, length)) < share)


def by_engine(here: Runtime, config: RunConfig) -> TensorStats:
    engine = start(here, config)
    layout, rank = engine.groups.layout, engine.groups.dp_rank
    masks = [mask_of(step, config)[rank :: layout.dp] for step in range(HELD_OUT + 1)]
    totals = engine.evaluate(own_batch(here, config, HELD_OUT), masks[HELD_OUT]).tolist()
    results = [engine.train_step(own_batch(here, config, step), LR, masks[step]) for step in STEPS]
    return TensorStats([result.loss for result in results], [result.grad_norm for result in results], totals)


def by_plain_torch(here: Runtime, config: RunConfig) -> TensorStats:
    stage, optim = plain_stage(here, config), config.optim
    groups = parameter_groups(stage.named(), config.model, optim)
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(optim.beta1, optim.beta2))

    def counted(step: int) -> Tensor:
        tokens = torch.from_numpy(batch_of(step, config.train.global_batch_size, config))
        losses = stage(0, tokens[:, :-1], positions_of(tokens[:, :-1]), None, labels=tokens[:, 1:])
        return losses[mask_of(step, config)]

    with torch.no_grad():
        held_out = counted(HELD_OUT)
    losses, norms = [], []
    for step in STEPS:
        loss = counted(step).mean()
        adamw.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(stage.parameters(), optim.clip_grad_norm).item())
        adamw.step()
        losses.append(loss.item())
    return TensorStats(losses, norms, [held_out.double().sum().item(), float(held_out.numel())])


@functools.cache
def expected(num_layers: int) -> TensorStats:
    alone = Layout("gpt", 0, micro_batches=1, overrides=(f"model.num_layers={num_layers}",))
    return run_ranks(by_plain_torch, 1, alone.config)[0]


@pytest.mark.parametrize(
    "layout",
    [
        Layout("gpt", 0),
        Layout("gpt", 1, tp=2, sp=True),
        Layout("gpt", 2, dp=3, micro_batches=4),
        Layout("gpt", 3, pp=2, vp=2, dp=2, micro_batches=2),
    ],
    ids=str,
)
def test_the_mean_is_over_the_targets_that_count(layout: Layout) -> None:
    alone = expected(layout.num_layers)
    for found in run_ranks(by_engine, layout.world_size, layout.config):
        np.testing.assert_allclose(found.losses, alone.losses, rtol=1e-6)
        np.testing.assert_allclose(found.norms, alone.norms, rtol=2e-6)
        np.testing.assert_allclose(found.totals, alone.totals, rtol=1e-6)


VALIDATED = (7, 12, 30, 36)
"""Numbers of samples for an engine with micro-batches of 12: they make one, one, three and three micro-batches, some
not full. An interleaved schedule of two stages needs an even number."""


def validated_by_engine(here: Runtime, config: RunConfig) -> list[list[float]]:
    engine, tokens = start(here, config), own_batch(here, config, HELD_OUT)
    every = torch.ones(len(tokens), config.model.seq_length, dtype=torch.bool)
    return [engine.evaluate(tokens[:number], every[:number]).tolist() for number in VALIDATED]


def validated_by_plain_torch(here: Runtime, config: RunConfig) -> list[list[float]]:
    stage, tokens = plain_stage(here, config), own_batch(here, config, HELD_OUT)
    with torch.no_grad():
        losses = stage(0, tokens[:, :-1], positions_of(tokens[:, :-1]), None, labels=tokens[:, 1:]).double()
    return [[losses[:number].sum().item(), losses[:number].numel()] for number in VALIDATED]


def test_padding_of_interleaved_micro_batches_does_not_count() -> None:
    layout = Layout("gpt", 1, pp=2, vp=2, micro_batches=4)
    alone = Layout("gpt", 0, micro_batches=1, overrides=(f"model.num_layers={layout.num_layers}",))
    (expected,) = run_ranks(validated_by_plain_torch, 1, alone.config)
    assert layout.config.train.micro_batch_size == 12
    for found in run_ranks(validated_by_engine, layout.world_size, layout.config):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def without_targets(here: Runtime, config: RunConfig) -> tuple[StepResult, bool, float]:
    """A step without targets between two others; whether it changed the state; the loss of the last step."""
    engine = start(here, config)
    tokens = own_batch(here, config, 0)
    engine.train_step(tokens, LR)
    before = whole_state(engine)
    nothing = engine.train_step(tokens, LR, torch.zeros(tokens.shape[0], tokens.shape[1] - 1, dtype=torch.bool))
    after = whole_state(engine)
    same = all(np.array_equal(before[name], after[name]) for name in before)
    return nothing, same, engine.train_step(tokens, LR).loss


@pytest.mark.parametrize("layout", [Layout("gpt", 0), Layout("gpt", 3, pp=2, vp=2, dp=2, micro_batches=2)], ids=str)
def test_a_batch_without_counted_targets_skips_the_step(layout: Layout) -> None:
    for nothing, same, next_loss in run_ranks(without_targets, layout.world_size, layout.config):
        assert np.isnan(nothing.loss) and not nothing.applied and same
        assert np.isfinite(next_loss) and next_loss > 1

"""A model with experts is saved, loaded and decoded in any layout, as every other model."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.model.expert_products import Choices, choose
from pretrain.run.state import RunState
from tests.ranks.test_parity import SAMPLES, SETTINGS, plain_run
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import own_batch, start, train, whole_state

SAVED, LAST = 2, 4


def shape(dp: int, **values: object) -> RunConfig:
    small = ("model.num_layers=4", "optim.eps=1e-4", "optim.clip_grad_norm=0.2")
    return run_config("balanced_experts", *small, *batches(dp, 3), **values)


def saved(here: Runtime, config: RunConfig, folder: Path) -> tuple[dict, list[float]]:
    """The state at the save, and the losses after it."""
    engine = start(here, config)
    train(here, config, engine, range(SAVED))
    state = whole_state(engine)
    CheckpointStore(folder, groups=engine.groups, keep_last=2, keep_every=0).save(engine, RunState(step=SAVED), {})
    return state, [result.loss for result in train(here, config, engine, range(SAVED, LAST))]


def loaded(here: Runtime, config: RunConfig, folder: Path) -> tuple[dict, list[float]]:
    engine = start(here, config)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=2, keep_every=0)
    found = store.newest()
    assert found is not None
    store.restore(found, engine)
    return whole_state(engine), [result.loss for result in train(here, config, engine, range(SAVED, LAST))]


def test_a_checkpoint_loads_in_any_split_of_the_experts(tmp_path):
    first = shape(2, tp=2, sp=True, ep=4, zero_stage=3)
    state, losses = run_ranks(saved, 4, first, tmp_path)[0]
    assert any(np.abs(value).max() > 0 for name, value in state.items() if name.endswith("router.bias"))
    for ranks, other in (
        (1, shape(1)),
        (4, shape(4, ep=2, etp=2, zero_stage=1)),
        (2, shape(1, pp=2, zero_stage=3)),
    ):
        found, after = run_ranks(loaded, ranks, other, tmp_path)[0]
        assert found.keys() == state.keys()
        assert all(np.array_equal(found[name], value) for name, value in state.items())
        np.testing.assert_allclose(after, losses, rtol=1e-5)


def skipped(here: Runtime, config: RunConfig) -> tuple[bool, float, float]:
    """Whether the step was applied, the largest bias, and the load that is left."""
    engine = start(here, config)
    tokens = own_batch(here, config, 0)
    result = engine.train_step(tokens, 1e-3, torch.zeros(tokens.shape[0], tokens.shape[1] - 1, dtype=torch.bool))
    routers = engine.stage.routers
    return (
        result.applied,
        max(router.bias.abs().max().item() for router in routers),
        sum(router.load.sum().item() for router in routers),
    )


@pytest.mark.parametrize("zero", [0, 3])
def test_a_skipped_step_moves_no_bias(zero):
    """A batch in which no target counts has no mean loss."""
    assert run_ranks(skipped, 1, shape(1, zero_stage=zero)) == [(False, 0.0, 0.0)]


def smallest_gap(here: Runtime, config: RunConfig) -> float:
    """The smallest distance of a chosen expert's score from the best one that was not chosen, in training."""
    gaps: list[float] = []

    def choose_and_measure(*given: Any) -> Choices:
        choices, bias, topk = choose(*given), given[2], given[3].topk
        best = (choices.scores.detach() + bias).sort(-1, descending=True).values
        gaps.append((best[..., topk - 1] - best[..., topk]).min().item())
        return choices

    with mock.patch("pretrain.model.router.choose", choose_and_measure):
        plain_run(here, config)
    return min(gaps)


@pytest.mark.parametrize("num_layers", [2, 4])
@pytest.mark.parametrize("model", ["experts", "balanced_experts"])
def test_no_choice_of_the_parity_rows_is_a_near_tie(model, num_layers):
    """Another order of summation, about 1e-8 of a score, must not change a choice, which changes the loss by 1e-5."""
    config = run_config(model, *SETTINGS, f"model.num_layers={num_layers}", *batches(1, 1, SAMPLES))
    assert run_ranks(smallest_gap, 1, config)[0] > 3e-7

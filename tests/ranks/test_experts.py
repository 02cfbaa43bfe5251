"""A model with experts is saved, loaded and decoded in any layout, as every other model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.checkpoint.on_disk import newest_whole
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
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
    found = newest_whole(folder)
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

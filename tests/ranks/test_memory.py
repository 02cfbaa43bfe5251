"""The planner predicts the memory of an engine to the byte."""

import dataclasses
from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.optimizer.base import num_bytes
from pretrain.engine.optimizer.interface import OptimizerMemory
from pretrain.planner.memory import Modes, plan_memory
from tests.support.models import VOCAB_SIZE, batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train


def held(here: Runtime, config: RunConfig) -> OptimizerMemory:
    """With the gradients just before the update."""
    engine = start(here, config)
    deepspeed_optimizer, gradients = engine.optimizer.optimizer, 0
    finish = deepspeed_optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal gradients
        gradients = engine.optimizer.memory().gradients
        return finish(*args, **kwargs)

    deepspeed_optimizer.step = step
    train(here, config, engine, [0])
    return dataclasses.replace(engine.optimizer.memory(), gradients=gradients)


MUON = {"muon": 1}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize(
    ("model", "world_size", "shape"),
    [
        ("gpt", 4, {"pp": 2}),
        ("llama", 4, {"tp": 2}),
        ("gpt_odd", 3, {}),
        pytest.param("gpt_odd", 2, MUON, marks=pytest.mark.full),
    ],
    ids=["pp2-dp2", "tp2-dp2", "dp3", "dp2-muon"],
)
def test_planned_model_states_match_the_engine(
    model: str, world_size: int, shape: dict[str, int], zero: int, precision: str
) -> None:
    shape = dict(shape)
    muon = ("optim=muon",) if shape.pop("muon", 0) else ()
    assert_planned(model, world_size, zero, *muon, precision=precision, **shape)


@pytest.mark.parametrize(("zero", "precision"), [(0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_experts_of_other_ranks_than_the_rest_are_planned(zero: int, precision: str) -> None:
    assert_planned("balanced_experts", 4, zero, precision=precision, ep=2)


def assert_planned(model: str, world_size: int, zero: int, *overrides: str, **shape: Any) -> None:
    dp = world_size // (shape.get("tp", 1) * shape.get("pp", 1))
    modes = Modes("per_micro_batch", "per_micro_batch")
    given = f"engine.grad_reduction={modes.grad_reduction}", f"engine.param_gather={modes.param_gather}"
    config = run_config(model, *batches(dp, 1), *given, *overrides, zero_stage=zero, **shape)
    ranks = run_ranks(held, world_size, config)
    stages = plan_memory(config, VOCAB_SIZE, world_size, modes)
    for rank, found in enumerate(ranks):
        plan = stages[rank // (world_size // len(stages))]
        assert found.parameters == plan.parameters
        assert found.master_weights == plan.master_weights
        assert found.moments == plan.moments
        if zero in (0, 3):  # the others keep a few elements of parameters at the borders too
            assert found.gradients == plan.gradients


def test_the_bytes_of_tensors_are_counted() -> None:
    assert num_bytes([torch.zeros(3, dtype=torch.bfloat16), torch.zeros(2)]) == 14

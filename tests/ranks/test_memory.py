"""What an engine holds is what the planner says, to the byte."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.planner.memory import Modes, plan_memory
from tests.support.models import VOCAB_SIZE, batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train


@dataclass(frozen=True)
class Held:
    """Bytes."""

    parameters: int
    masters: int
    moments: int
    gradients: int
    """Sums, just before the update, at stages 0 and 3; the others keep bits of border parameters whole."""


def held(here: Runtime, config: RunConfig) -> Held:
    engine = start(here, config)
    optimizer, zero = engine.optimizer, engine.zero
    gradients = 0
    finish = optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal gradients
        if zero == 3:
            gradients = _bytes([optimizer.grad_partitions_flat_buffer])
        elif zero == 0:
            gradients = _bytes(p.grad for p in engine.stage.parameters())
        return finish(*args, **kwargs)

    optimizer.step = step
    train(here, config, engine, [0])
    if zero == 3:
        parameters = _bytes(p.ds_tensor for p in engine.stage.parameters())
        masters = _bytes(optimizer.fp32_partitioned_groups_flat)
    elif zero:
        parameters = _bytes(optimizer.bit16_groups_flat)
        masters = _bytes(optimizer.single_partition_of_fp32_groups)
    else:
        parameters = _bytes(engine.stage.parameters())
        in_16_bits = config.engine.precision != "fp32"
        masters = _bytes(p for group in optimizer.fp32_groups for p in group) if in_16_bits else 0
    states = engine._basic_optimizer.state.values()
    return Held(parameters, masters, _bytes(s[kind] for s in states for kind in ("exp_avg", "exp_avg_sq")), gradients)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize(
    ("model", "world_size", "shape"),
    [("gpt", 4, {"pp": 2}), ("llama", 4, {"tp": 2}), ("gpt_odd", 3, {})],
    ids=["pp2-dp2", "tp2-dp2", "dp3"],
)
def test_an_engine_holds_what_the_plan_says(
    model: str, world_size: int, shape: dict[str, int], zero: int, precision: str
) -> None:
    dp = world_size // (shape.get("tp", 1) * shape.get("pp", 1))
    modes = Modes("per_micro_batch", "per_micro_batch")
    given = f"engine.grad_reduction={modes.grad_reduction}", f"engine.param_gather={modes.param_gather}"
    config = run_config(model, *batches(dp, 1), *given, zero_stage=zero, precision=precision, **shape)
    ranks = run_ranks(held, world_size, config)
    stages = plan_memory(config, VOCAB_SIZE, world_size, modes)
    for rank, found in enumerate(ranks):
        plan = stages[rank // (world_size // len(stages))]
        assert found.parameters == plan.parameters
        assert found.masters == plan.master_weights
        assert found.moments == plan.moments
        assert found.gradients == (plan.gradients if zero in (0, 3) else 0)


def test_the_bytes_of_tensors_are_counted() -> None:
    assert _bytes([torch.zeros(3, dtype=torch.bfloat16), torch.zeros(2)]) == 14

"""The update takes a constant number of operations, and is equal with and without optim.fused."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from tests.ranks.test_resume import resume, save_and_go_on
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train, whole_state


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called[str(func)] += 1
        return func(*args, **(kwargs or {}))


FUSED, PLAIN = "optim.fused=true", "optim.fused=false"
SETTINGS = ("optim.clip_grad_norm=0.2", "optim.eps=1e-4")


def operations_of_an_update(here: Runtime, config: RunConfig) -> Counter[str]:
    """Operations between the last backward pass and the result, in the second step."""
    engine, operations = start(here, config), Operations()
    train(here, config, engine, [0])
    update = engine.engine.step

    def watched() -> None:
        with operations:
            update()

    engine.engine.step = watched
    train(here, config, engine, [1])
    return operations.called


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_number_of_update_operations_is_independent_of_layers(precision: str) -> None:
    """At ZeRO-0. At the other stages DeepSpeed runs some operations per parameter."""
    few, many = (
        run_ranks(
            operations_of_an_update,
            1,
            run_config("gpt", *batches(1), f"model.num_layers={layers}", zero_stage=0, precision=precision),
        )[0]
        for layers in (1, 6)
    )
    assert few == many
    assert few["aten._fused_adamw_.default"] == 2, "one for what is decayed, one for what is not"
    assert few.total() < 20


def state_after_steps(here: Runtime, config: RunConfig) -> tuple[Counter[str], dict[str, np.ndarray]]:
    engine, operations = start(here, config), Operations()
    with operations:
        train(here, config, engine, range(5))
    return operations.called, whole_state(engine)


@pytest.mark.parametrize(
    ("world_size", "values"),
    [(1, {"zero_stage": 0, "precision": "bf16"}), (2, {"zero_stage": 1}), (2, {"zero_stage": 3})],
    ids=["zero0-bf16", "zero1-dp2", "zero3-dp2"],
)
def test_the_fused_update_is_the_plain_one(world_size: int, values: dict[str, object]) -> None:
    ways = []
    for way in (FUSED, PLAIN):
        config = run_config("gpt", *batches(world_size), *SETTINGS, way, **values)
        ways.append(run_ranks(state_after_steps, world_size, config)[0])
    (operations, state), (others, expected) = ways
    assert operations["aten._fused_adamw_.default"] and not others["aten._fused_adamw_.default"]
    assert others["aten._foreach_addcdiv_.ScalarList"] and state.keys() == expected.keys()
    for name, value in state.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_resume_may_change_optim_fused(stage: int, tmp_path: Path) -> None:
    fused, plain = (run_config("gpt", *batches(1), *SETTINGS, way, zero_stage=stage) for way in (FUSED, PLAIN))
    whole, _ = run_ranks(save_and_go_on, 1, fused, tmp_path)[0]
    part, _ = run_ranks(resume, 1, plain, tmp_path)[0]
    for found, expected in zip(part.results, whole.results, strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    for name, value in part.state.items():
        np.testing.assert_allclose(value, whole.state[name], rtol=1e-5, atol=1e-6, err_msg=name)

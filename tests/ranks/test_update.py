"""The optimizer's update: as many operations whatever the number of parameters."""

from collections import Counter
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.run import RunConfig
from pretrain.layout.runtime import Runtime
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations_of_an_update(here: Runtime, config: RunConfig) -> Counter[str]:
    """All between the last backward pass and the result, in the second step."""
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
def test_an_update_on_one_rank_takes_as_many_operations_whatever_the_number_of_layers(precision: str) -> None:
    """At stage 0; the other stages go through DeepSpeed's flat groups parameter by parameter."""
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

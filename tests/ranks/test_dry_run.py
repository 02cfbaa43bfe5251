"""Runs of one rank of thousands, without computing: nothing of a rank's grows with their number, except what must."""

import functools
from typing import Any

import pytest

from pretrain.pretend.measured import Measured, Step
from pretrain.pretend.one_rank import Asked, measure
from tests.support.models import VOCAB_SIZE, run_config
from tests.support.parts import full_except
from tests.support.ranks import run_ranks

FEW, MANY = 16, 16_384
UNLIMITED = 1 << 50
OFTEN = {"grad_reduction": "per_micro_batch", "param_gather": "per_micro_batch"}
SELDOM = {"grad_reduction": "per_step", "param_gather": "per_step"}
LARGER = ("model.hidden_size=512", "model.ffn_hidden_size=2048")
"""Much larger than the padding of its parts, which grows with the number of ranks."""
CASES: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero2-often": {"zero_stage": 2, "grad_reduction": "per_micro_batch"},
    "zero3": {"zero_stage": 3, **SELDOM},
    "zero3-often": {"zero_stage": 3, **OFTEN},
}
SHORT = ("zero1", "zero3-often")
OVER_ALL_RANKS = {"all-reduce": 2}
"""Collectives of a step over all ranks: of the loss with its count, and of the norm of the gradients."""


@functools.cache
def one_of(world_size: int, case: str) -> Measured:
    """Rank 0 of many that split a tiny model over 2 tensor-parallel ranks and 2 stages; each runs 4 micro-batches."""
    sizes = {"global_batch_size": world_size, "micro_batch_size": 1}
    config = run_config("gpt", *LARGER, precision="bf16", tp=2, sp=True, pp=2, **sizes, **CASES[case])
    asked = Asked(config, VOCAB_SIZE, world_size, 0, UNLIMITED, (1, 3))
    (measured,) = run_ranks(measure, 1, asked, joined=False)
    assert isinstance(measured, Measured)
    return measured


def calls(step: Step) -> dict[tuple[str, str], float]:
    """The number of collectives by group and kind."""
    return {(item.group, item.kind): item.number for item in step.traffic}


@pytest.mark.parametrize("case", full_except(CASES, SHORT))
def test_the_work_of_the_host_ignores_world_size(case: str) -> None:
    few, many = (one_of(world_size, case) for world_size in (FEW, MANY))
    for at_few, at_many in zip(few.steps, many.steps, strict=True):
        assert at_many.operations <= at_few.operations
        assert at_many.waits == at_few.waits
        assert calls(at_many) == calls(at_few)
    assert [name for name, _ in few.groups] == [name for name, _ in many.groups]


@pytest.mark.parametrize("case", full_except(CASES, SHORT))
def test_memory_does_not_grow_with_world_size(case: str) -> None:
    few, many = (one_of(world_size, case) for world_size in (FEW, MANY))
    assert many.started <= few.started
    for name in ("peak_forward_backward", "peak_update", "between_steps"):
        assert getattr(many.steps[-1], name) <= getattr(few.steps[-1], name)


@pytest.mark.parametrize("case", full_except(CASES, SHORT))
def test_few_bytes_go_over_all_ranks_in_a_step(case: str) -> None:
    step = one_of(MANY, case).steps[-1]
    over_all = [item for item in step.traffic if item.ranks == MANY and item.kind not in ("send", "receive")]
    assert {item.kind: item.number for item in over_all} == OVER_ALL_RANKS
    assert sum(item.size for item in over_all) == 24

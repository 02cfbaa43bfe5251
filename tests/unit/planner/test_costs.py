"""Waiting and traffic of a layout, by hand and against a schedule played out."""

import functools
from typing import Any

import pytest

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.planner.costs import bubble_share, step_traffic
from pretrain.planner.memory import Modes
from pretrain.planner.shapes import all_stages
from tests.unit.config.test_checks import replaced


def steps_of_all_forward_all_backward(pp: int, micro_batches: int) -> int:
    """Ticks of a pipeline whose stages take one tick for each micro-batch and direction, played out."""
    done = [[0] * pp for _ in range(2)]  # micro-batches that each stage is done with: forward, backward
    ticks = 0
    while done[1][0] < micro_batches:
        before = [list(row) for row in done]
        for stage in range(pp):
            arrived = micro_batches if stage == 0 else before[0][stage - 1]
            returned = before[0][stage] if stage == pp - 1 else before[1][stage + 1]
            if before[0][stage] < min(arrived, micro_batches):
                done[0][stage] += 1
            elif before[0][stage] == micro_batches and before[1][stage] < returned:
                done[1][stage] += 1
        ticks += 1
    return ticks


@pytest.mark.parametrize(("pp", "number"), [(1, 3), (2, 1), (2, 4), (4, 4), (4, 16), (8, 3)])
def test_the_bubble_is_the_share_of_idle_ticks(pp: int, number: int) -> None:
    ticks = steps_of_all_forward_all_backward(pp, number)
    assert bubble_share(pp, 1, number) == pytest.approx((ticks - 2 * number) / ticks)


def test_more_chunks_shrink_the_bubble() -> None:
    assert bubble_share(4, 2, 8) == bubble_share(4, 1, 16) == pytest.approx(3 / 19)
    assert bubble_share(1, 1, 1) == 0


@functools.cache
def base() -> RunConfig:
    batch = ("train.global_batch_size=64", "train.micro_batch_size=2")
    return load_run_config(["model=tiny", "engine=zero3_bf16", *batch])


def changed(**changes: Any) -> RunConfig:
    config = base()
    for key, value in changes.items():
        config = replaced(config, key.replace("__", "."), value)
    return config


LEAST, MOST = Modes("per_micro_batch", "per_micro_batch"), Modes("per_step", "per_step")
# 4 ranks, 8 micro-batches: tensors of the stage gathered (2 bytes an element) and reduced (4).
TRAFFIC = [
    ({"engine__zero_stage": 0}, MOST, 0, 2),
    ({"engine__zero_stage": 1}, MOST, 1, 2),
    ({"engine__zero_stage": 2}, MOST, 1, 2),
    ({"engine__zero_stage": 2}, LEAST, 1, 16),
    ({}, MOST, 1, 1),
    ({}, LEAST, 16, 8),
    ({"engine__recompute__granularity": "full"}, LEAST, 24, 8),
    ({}, Modes("per_micro_batch", "per_step"), 1, 8),
]


@pytest.mark.parametrize(("changes", "modes", "gathers", "reductions"), TRAFFIC)
def test_traffic_is_counted_in_tensors_of_the_stage(
    changes: dict[str, Any], modes: Modes, gathers: int, reductions: int
) -> None:
    config = changed(**changes)
    (stage,) = all_stages(config.model, config.parallel, 512)
    (traffic,) = step_traffic(config, 512, 4, modes)
    assert traffic.gather == pytest.approx(gathers * 2 * stage.num_parameters * 3 / 4, abs=1)
    assert traffic.reduction == pytest.approx(reductions * 4 * stage.num_parameters * 3 / 4, abs=1)


def test_one_rank_has_no_traffic() -> None:
    (traffic,) = step_traffic(base(), 512, 1, LEAST)
    assert traffic.gather == traffic.reduction == 0

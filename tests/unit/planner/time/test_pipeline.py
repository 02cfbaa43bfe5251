"""The simulated schedules against formulas and against themselves."""

from collections import Counter

import pytest

from pretrain.planner.costs import bubble_share
from pretrain.planner.time import pipeline
from pretrain.planner.time.pipeline import Schedule, busy_seconds, order_of, seconds_of


@pytest.mark.parametrize(("pp", "vp", "number"), [(1, 1, 3), (2, 1, 1), (4, 1, 8), (8, 1, 64), (4, 3, 8), (8, 2, 32)])
def test_equal_stages_take_what_the_formula_says(pp: int, vp: int, number: int) -> None:
    schedule = Schedule([[1.0] * vp] * pp, [[2.0] * vp] * pp, 0.0, number)
    work = 3.0 * vp * number
    assert 1 - work / seconds_of(schedule) == pytest.approx(bubble_share(pp, vp, number))


@pytest.mark.parametrize(("vp", "number"), [(1, 40), (2, 40), (3, 30)])
def test_later_micro_batches_repeat_the_slowest_stage(monkeypatch, vp: int, number: int) -> None:
    pp = 5
    forward = [[1.0 + 0.3 * stage * chunk for chunk in range(vp)] for stage in range(pp)]
    backward = [[2.0 - 0.2 * stage + 0.1 * chunk for chunk in range(vp)] for stage in range(pp)]
    schedule = Schedule(forward, backward, 0.07, number)
    short = seconds_of(schedule)
    monkeypatch.setattr(pipeline, "SIMULATED_ROUNDS", number)
    # Exact for 1F1B. An interleaved order of very unequal chunks settles later than it is played.
    assert short == pytest.approx(seconds_of(schedule), rel=1e-9 if vp == 1 else 5e-3)
    assert short >= number * max(busy_seconds(schedule))


@pytest.mark.parametrize("vp", [1, 2, 4])
def test_every_pass_runs_once_and_forward_comes_first(vp: int) -> None:
    pp, number = 4, 8
    for stage in range(pp):
        order = order_of(stage, pp, vp, number)
        assert set(Counter(order).values()) == {1} and len(order) == 2 * vp * number
        place = {this: index for index, this in enumerate(order)}
        assert all(
            place[False, chunk, micro_batch] < place[True, chunk, micro_batch] for _, chunk, micro_batch in order
        )


def test_transfers_lengthen_a_step() -> None:
    without, slow = (seconds_of(Schedule([[1.0]] * 4, [[2.0]] * 4, transfer, 16)) for transfer in (0.0, 0.1))
    assert without + 16 * 0.2 <= slow <= without + 2 * (16 + 3) * 0.1 + 1e-9

"""The comparison of a run's first steps with its plan."""

import logging

import pytest

from pretrain.planner.time.result import StepTime
from pretrain.tracking.plan_sink import PlanSink

PLANNED = StepTime(0.1, 0.09, 0.11, {"matrix products": 0.1}, "products", 1, 10, {}, "mine", {})


def values(seconds: float) -> dict[str, float | int | str]:
    return {
        "seconds_step": seconds,
        "seconds_data": 0.0,
        "seconds_forward_backward": seconds,
        "seconds_optimizer": 0.0,
    }


def lines_of(caplog: pytest.LogCaptureFixture, every: int, first: int, planned: StepTime | None = PLANNED) -> list[str]:
    """The log of a run whose first five steps are slow, recorded every few steps."""
    sink = PlanSink(lambda: planned, first)
    with caplog.at_level(logging.INFO, "pretrain.tracking.plan_sink"):
        sink.log("validation", first, {"loss": 1.0})
        for step in range(first + every, first + 60, every):
            slow = sum(1 for each in range(step - every, step) if each < first + 5)
            sink.log("train", step, values((9.0 * slow + 0.2 * (every - slow)) / every))
        sink.close("finished")
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("first", [0, 400])
@pytest.mark.parametrize("every", [1, 3, 10, 25])
def test_one_line_after_the_first_steps(caplog: pytest.LogCaptureFixture, every: int, first: int) -> None:
    (line,) = lines_of(caplog, every, first)
    assert "planned 100 ms for mine, measured 200 ms" in line, "slow first steps do not count"


def test_an_unknown_machine_is_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(caplog, 10, 0, planned=None) == []


def test_a_record_without_times_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    sink = PlanSink(lambda: PLANNED, 0)
    for step in range(1, 40):
        sink.log("train", step, {"loss": 2.0})
    assert not caplog.records

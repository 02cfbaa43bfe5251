"""Compares the planned time of a step with the first steps of a run, once."""

import logging
from collections.abc import Callable, Mapping

from pretrain.planner.time.result import StepTime
from pretrain.planner.time.versus import beside_run
from pretrain.tracking.metrics_file import Kind, Values

WARM_UP, STEPS = 5, 10
"""Steps that do not count, and those that are then compared, at least."""
MEASURED = ("seconds_step", "seconds_data", "seconds_forward_backward", "seconds_optimizer")

log = logging.getLogger(__name__)


class PlanSink:
    """A sink of train records that logs one line after the first steps; it needs no step of its own."""

    def __init__(self, plan: Callable[[], StepTime | None], first_step: int) -> None:
        """`plan` is called once, when the steps are measured; `first_step`: the step at which this attempt starts."""
        self._plan = plan
        self._last = first_step
        self._begin = first_step + WARM_UP
        self._steps = 0
        self._seconds = dict.fromkeys(MEASURED, 0.0)
        self._is_done = False

    def log(self, kind: Kind, step: int, values: Values) -> None:
        if self._is_done or kind != "train" or "seconds_step" not in values:
            return
        steps, began_late_enough = step - self._last, self._last >= self._begin
        self._last = step
        if not began_late_enough:
            return
        self._steps += steps
        self._seconds = _added(self._seconds, values, steps)
        if self._steps >= STEPS:
            self._is_done = True
            self._compare()

    def close(self, outcome: str) -> None:
        pass

    def _compare(self) -> None:
        planned = self._plan()
        if planned is not None:
            means = {name: seconds / self._steps for name, seconds in self._seconds.items()}
            log.info("%s", beside_run(planned, means).line)


def _added(seconds: Mapping[str, float], values: Values, steps: int) -> dict[str, float]:
    return {name: total + steps * float(values[name]) for name, total in seconds.items()}

"""train.max_minutes: rank 0's clock shortens the run while it trains, so that it ends in time.

The learning rate never depends on the clock. The clock only decides, now and then, that the run is shorter than
planned; the new length is part of the state in checkpoints, and is recorded in metrics.jsonl. Between two decisions
everything follows from the state. A resume takes the recorded decisions for the steps that it repeats, so that it
repeats them exactly.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.pace import FORWARD_SHARE

UNMEASURED_STEPS = 3
"""Steps at the start of an attempt that are not measured: the first step also compiles and fills caches, and the loop,
which asks during a step, adds the time of the step before to its clock."""
PACE_SHARE = 0.1
"""The smallest share of the limit over which the pace is measured."""
LOOK_SHARE = 0.02
"""Share of the limit between two checks of the clock, and the excess that is allowed: the pace always changes a little,
and a cut is never undone."""
VALIDATION_SHARE = 0.25
"""The largest share of the limit that is reserved for the final validation."""


class TimeLimit(Protocol):
    """Decides when the run ends earlier."""

    def cut(self, state: RunState, seconds: float) -> int:
        """The tokens after which the run ends, decided after `seconds` of training; 0: the end does not change."""


class NoLimit:
    """The run ends as planned."""

    def cut(self, state: RunState, seconds: float) -> int:
        return 0


NO_LIMIT = NoLimit()


@dataclass(frozen=True)
class EarlierCuts:
    """The decisions of an earlier attempt for the steps that are repeated."""

    cuts: Mapping[int, int] = field(default_factory=dict)
    """Step -> the tokens after which the run ends."""
    last_step: int = 0
    """The last step that the attempt recorded."""

    def cut(self, state: RunState, seconds: float) -> int:
        """The recorded decision for this step, in the place of a time limit's."""
        return self.cuts.get(state.step, 0)


class ClockLimit:
    """Shortens the run if, at its mean pace in this attempt, it would not end within its minutes."""

    def __init__(self, length: RunLength, minutes: float, earlier: EarlierCuts, final_tokens: int = 0) -> None:
        """`final_tokens`: the tokens of the validation after the last step."""
        self._length, self._limit, self._earlier = length, 60 * minutes, earlier
        self._final_tokens = final_tokens
        self._first_step: int | None = None
        self._measured_from: tuple[int, float] | None = None
        self._next_look = 0.0

    def cut(self, state: RunState, seconds: float) -> int:
        if self._first_step is None:
            self._first_step = state.step
        elif self._measured_from is None and state.step >= self._first_step + UNMEASURED_STEPS:
            self._measured_from = (state.tokens, seconds)
            self._next_look = seconds + PACE_SHARE * self._limit
        if state.step <= self._earlier.last_step:
            return self._earlier.cut(state, seconds)
        if self._measured_from is None or seconds < self._next_look:
            return 0
        self._next_look = seconds + LOOK_SHARE * self._limit
        tokens, since = self._measured_from
        if state.tokens == tokens:
            return 0
        return self._cut(state, seconds, pace=(seconds - since) / (state.tokens - tokens))

    def _cut(self, state: RunState, seconds: float, pace: float) -> int:
        """`pace`: seconds per token. At least one step remains, which has the last learning rate."""
        steps, step_seconds = self._length.steps_left(state), pace * self._length.step_tokens
        validation = min(VALIDATION_SHARE * self._limit, FORWARD_SHARE * pace * self._final_tokens)
        left = self._limit - validation - seconds
        if steps * step_seconds <= left + LOOK_SHARE * self._limit:
            return 0
        fitting = max(1, math.floor(left / step_seconds))
        return state.tokens + fitting * self._length.step_tokens if fitting < steps else 0


def earlier_cuts(records: Iterable[Mapping[str, Any]], state: RunState, length: RunLength) -> EarlierCuts:
    """The decisions after the step of `state` in the records of an attempt with the same limit and batch size.

    With another batch size the same steps have other tokens: no step is repeated, and its decisions do not count.
    """
    cuts: dict[int, int] = {}
    last_step = 0

    def is_on_the_way(step: int, tokens: int) -> bool:
        return tokens - state.tokens == (step - state.step) * length.step_tokens

    for record in records:
        step = record["step"]
        if step < state.step:
            continue
        if record["kind"] == "length" and is_on_the_way(record["end_step"], record["cut_tokens"]):
            last_step = max(last_step, step)
            if record["cut_minutes"] == length.train.max_minutes:
                cuts[step] = int(record["cut_tokens"])
        if record["kind"] == "train" and is_on_the_way(step, record["tokens"]):
            last_step = max(last_step, step)
    return EarlierCuts(cuts, last_step)


def time_limit_of(length: RunLength, earlier: EarlierCuts, final_tokens: int = 0) -> TimeLimit:
    """The configured time limit; `final_tokens`: the tokens of the validation after the last step."""
    minutes = length.train.max_minutes
    return NO_LIMIT if minutes is None else ClockLimit(length, minutes, earlier, final_tokens)

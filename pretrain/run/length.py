"""The length of a run and the position in it, counted in tokens; steps follow from the current batch size.

The batch size may change when a run is resumed, so the number of past steps does not give their tokens.
"""

from dataclasses import dataclass

from pretrain.config.checks import profile_problem, warmup_problem
from pretrain.config.derived import tokens_per_step
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.optim import LrScheduleConfig
from pretrain.config.run import RunConfig, TrainConfig
from pretrain.optim.learning_rate import lr_at
from pretrain.run.state import RunState


@dataclass(frozen=True)
class RunLength:
    """The length that a configuration asks for; all its numbers are pure functions of the state of the run.

    A run of `train.max_steps` ends with that step. One of `train.max_tokens` ends with the first step that
    reaches so many tokens. `train.max_minutes` can end either of them earlier: the state has the end.
    """

    train: TrainConfig
    schedule: LrScheduleConfig
    peak: float
    """The highest learning rate."""
    step_tokens: int
    """Tokens of each step from now on."""

    @staticmethod
    def of(config: RunConfig) -> "RunLength":
        return RunLength(config.train, config.lr_schedule, config.optim.lr, tokens_per_step(config))

    def steps_left(self, state: RunState) -> int:
        """The number of remaining steps."""
        left = self._planned_steps_left(state)
        cut = self._cut(state)
        return left if cut is None else min(left, self._steps_for(cut - state.tokens))

    def end_step(self, state: RunState) -> int:
        """The step at which the run ends."""
        return state.step + self.steps_left(state)

    def end_tokens(self, state: RunState) -> int:
        """The number of tokens trained on by the end of the run."""
        return state.tokens + self.steps_left(state) * self.step_tokens

    def end_position(self, state: RunState) -> int:
        """The number of samples consumed by the end of the run."""
        return state.position + self.steps_left(state) * self.train.global_batch_size

    def planned_end_step(self, state: RunState) -> int:
        """The number of the last step if time does not end the run earlier."""
        return state.step + self._planned_steps_left(state)

    def is_shortened(self, state: RunState) -> bool:
        """Whether time ends the run earlier than planned."""
        return self.steps_left(state) < self._planned_steps_left(state)

    def is_over(self, state: RunState) -> bool:
        """Whether the last step is done."""
        return self.steps_left(state) == 0

    def lr(self, state: RunState) -> float:
        """The learning rate of the next step."""
        unit, end = self.step_tokens, self.end_tokens(state)
        done = state.tokens + unit
        warmup_steps = self._warmup_steps()
        if warmup_steps is None:
            warmup = self._warmup_tokens(state)
        elif state.step < warmup_steps:
            done, warmup = (state.step + 1) * unit, warmup_steps * unit
        else:
            warmup = state.tokens_after(warmup_steps)
        if self._cut(state) is not None and warmup > end // 2:
            # The planned warmup would fill a run that a slow machine has cut short.
            done, warmup = state.tokens + unit, end // 2
        # In steps of the current batch size: if it never changed, these are whole numbers and nothing is rounded.
        return lr_at(
            done / unit,
            peak=self.peak,
            schedule=self.schedule,
            warmup=warmup / unit,
            end=end / unit,
        )

    def _planned_steps_left(self, state: RunState) -> int:
        if self.train.max_steps is not None:
            return max(0, self.train.max_steps - state.step)
        assert self.train.max_tokens is not None
        return self._steps_for(self.train.max_tokens - state.tokens)

    def _steps_for(self, tokens: int) -> int:
        return max(0, -(-tokens // self.step_tokens))

    def _cut(self, state: RunState) -> int | None:
        return state.cut_tokens if state.cut_minutes == self.train.max_minutes else None

    def _warmup_steps(self) -> int | None:
        """The warmup in steps: as given, or a twentieth of train.max_steps; None if it is counted in tokens."""
        if self.schedule.warmup_tokens is not None:
            return None
        if self.schedule.warmup_steps is not None:
            return self.schedule.warmup_steps
        return None if self.train.max_steps is None else self.train.max_steps // 20

    def _warmup_tokens(self, state: RunState) -> int:
        """The warmup in tokens: as given, in whole steps, or a twentieth of train.max_tokens in first batches."""
        if self.schedule.warmup_tokens is not None:
            return self._steps_for(self.schedule.warmup_tokens) * self.step_tokens
        assert self.train.max_tokens is not None
        first = state.first_batch() or self.step_tokens
        return -(-self.train.max_tokens // first) // 20 * first


def check_length(config: RunConfig, state: RunState) -> None:
    """Raise ConfigError if warmup or profiled steps reach beyond the end of the run that is at `state`."""
    length, schedule, profiled = RunLength.of(config), config.lr_schedule, config.profile.steps
    end = length.planned_end_step(state)
    end_tokens = state.tokens + (end - state.step) * length.step_tokens
    problems: list[Problem] = []
    if (schedule.warmup_steps or 0) > end:
        problems.append(warmup_problem("warmup_steps", schedule.warmup_steps, f"{end} steps"))
    if (schedule.warmup_tokens or 0) > end_tokens:
        problems.append(warmup_problem("warmup_tokens", schedule.warmup_tokens, f"{end} steps"))
    if profiled is not None and profiled[1] > end:
        problems.append(profile_problem(profiled, end))
    if problems:
        raise ConfigError(problems)

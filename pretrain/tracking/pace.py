"""Estimates of the time left in a run and in a validation."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pretrain.config.run import EvaluationConfig
from pretrain.tracking.metrics_file import Kind, Values

SECONDS_BETWEEN_LINES = 5.0
FORWARD_SHARE = 1 / 3
"""A validation computes this share of a training step: the forward pass without the backward pass."""


@dataclass(frozen=True)
class ValidationSizes:
    """Number of samples that a validation at the interval reads."""

    at_interval: int
    final: int
    """Number of samples that the validation after the last step reads."""


def count_samples(dataset_sizes: Iterable[int], limit: int | None) -> int:
    """The number of samples that a validation reads: at most `limit` of each dataset; None: all."""
    return sum(size if limit is None else min(size, limit) for size in dataset_sizes)


def validation_sizes(dataset_sizes: Sequence[int], evaluation: EvaluationConfig) -> ValidationSizes:
    """The sizes of validations under this configuration."""
    return ValidationSizes(
        at_interval=count_samples(dataset_sizes, evaluation.max_samples),
        final=count_samples(dataset_sizes, evaluation.final_max_samples),
    )


def series_name(kind: Kind, values: Values, sizes: ValidationSizes | None) -> str:
    """The curve that a record belongs to; validations of a different sample size have their own curve."""
    if kind == "validation" and sizes is not None and values.get("samples") not in (None, sizes.at_interval):
        return "final_validation"
    return kind


class Progress:
    """Time left at the pace since the first record, which includes validation and saving."""

    def __init__(self, total_steps: int, final_samples: int, now: Callable[[], float]) -> None:
        self.total_steps = total_steps
        self._final_samples = final_samples
        self._now = now
        self._first: tuple[int, float] | None = None
        self._seconds_per_sample: float | None = None
        """The time that the last validation took."""

    def validated(self, values: Values) -> None:
        """Update the speed of validation from a result."""
        samples, seconds = float(values.get("samples", 0)), float(values.get("seconds", 0))
        if samples > 0:
            self._seconds_per_sample = seconds / samples

    def remaining(self, step: int, values: Values) -> float:
        """Seconds left, with the final validation; NaN until two records or a step time are known."""
        now = self._now()
        first_step, first_time = self._first = self._first or (step, now)
        if step > first_step:
            pace = (now - first_time) / (step - first_step)
        else:
            pace = float(values.get("seconds_step", math.nan))
        return (self.total_steps - step) * pace + self._final_validation(values)

    def _final_validation(self, values: Values) -> float:
        """Computed from the last validation; before the first one, from the time of a training step."""
        each = self._seconds_per_sample
        if each is None:
            samples = float(values.get("batch_samples", 0))
            each = FORWARD_SHARE * float(values.get("seconds_forward_backward", 0)) / samples if samples else 0.0
        return self._final_samples * each


class ValidationProgress:
    """The progress of the current validation, and when to log it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began = self._last_line = now()

    def seconds_to_go(self, done: int, total: int) -> float:
        """Seconds left at the pace since the start of the validation; NaN before the first batch."""
        if not done:
            self._began = self._last_line = self._now()
            return math.nan
        return (total - done) * (self._now() - self._began) / done

    def rate(self, done: int) -> float:
        """Samples per second."""
        seconds = self._now() - self._began
        return done / seconds if seconds > 0 else math.nan

    def is_line_due(self) -> bool:
        """Whether to log a line: every few seconds at first, and less often the longer the validation takes."""
        now = self._now()
        if now - self._last_line < max(SECONDS_BETWEEN_LINES, 0.1 * (now - self._began)):
            return False
        self._last_line = now
        return True

"""The series behind the curves of a run: values of its records, smoothed and thinned, and the range to show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = Sequence[Mapping[str, Any]]
Series = NDArray[np.float64]

MAX_POINTS = 1500  # more than a picture is wide in pixels


@dataclass(frozen=True)
class Validations:
    """Results that were measured on as many samples each, and so make one curve."""

    samples: int | None
    """None: not recorded."""
    is_main: bool
    """Whether these are the results at the interval."""
    steps: Series
    loss: Series

    @property
    def label(self) -> str:
        """The name in a legend."""
        if self.is_main or self.samples is None:
            return "validation"
        return f"validation on {self.samples:,} samples"


def of_kind(records: Records, kind: str) -> Records:
    """The records of one kind, in their order."""
    return [record for record in records if record["kind"] == kind]


def values_of(records: Records, key: str) -> Series:
    """A value of each record; NaN if it is missing or is not a number."""
    found = (record.get(key, math.nan) for record in records)
    return np.array([value if isinstance(value, int | float) else math.nan for value in found], dtype=np.float64)


def validation_curves(records: Records) -> list[Validations]:
    """Results of validations by sample size, the size of most of them first."""
    groups: dict[int | None, list[Mapping[str, Any]]] = {}
    for record in of_kind(records, "validation"):
        groups.setdefault(record.get("samples"), []).append(record)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        Validations(samples, number == 0, values_of(rows, "step"), values_of(rows, "loss"))
        for number, (samples, rows) in enumerate(ordered)
    ]


def smooth(values: Series, window: int) -> Series:
    """Mean of the finite values in a window around each point, narrower at both ends; NaN if the window has none."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    centre = np.arange(len(values))
    # At the start no further ahead than behind, or a falling curve would be drawn too low there.
    behind = np.minimum(window // 2, centre)
    first, past = centre - behind, np.minimum(centre + behind, len(values) - 1) + 1
    number = counts[past] - counts[first]
    return np.where(number > 0, (sums[past] - sums[first]) / np.maximum(number, 1), np.nan)


def smoothed(values: Series) -> Series:
    """Smoothed with a window that depends on the number of points; few points are unchanged."""
    return smooth(values, window=max(5, len(values) // 30)) if len(values) >= 20 else values


def thin(number: int) -> NDArray[np.int64]:
    """Indices of at most MAX_POINTS out of `number` points, with the first and the last one."""
    if number <= MAX_POINTS:
        return np.arange(number)
    return np.unique(np.linspace(0, number - 1, MAX_POINTS).astype(np.int64))


def range_to_show(values: Series, *others: Series) -> tuple[float, float] | None:
    """Limits of an axis that hold the start and the bulk of a curve, and all of the others; rare spikes may leave it.

    None: there are fewer than two points, or all are equal.
    """
    finite = values[np.isfinite(values)]
    rest = np.concatenate([other[np.isfinite(other)] for other in others]) if others else finite[:0]
    if len(finite) + len(rest) < 2:
        return None
    low, high = math.inf, -math.inf
    if len(finite):
        low, high = float(finite.min()), max(float(finite[0]), float(np.quantile(finite, 0.998)))
    if len(rest):
        low, high = min(low, float(rest.min())), max(high, float(rest.max()))
    margin = 0.04 * (high - low)
    return (low - margin, high + margin) if high > low else None

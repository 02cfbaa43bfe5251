"""The effective compute multiplier of a change: how much more compute the base needs for the loss of the variant.

For a cell of the variant, N and D of the base grow together by a factor s until the base's law has the variant's
loss. The multiplier is the compute there over the compute that the variant spent. If the base has the same cell, the
ratio of the two measured losses counts, so that the law's misfit at that cell cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from pretrain.scaling.laws.bootstrap import LEVEL, Interval
from pretrain.scaling.laws.parametric import Fit, Law
from pretrain.scaling.laws.points import FLOPS_PER_TOKEN, Array, BadPoints, Points, check_points

FEWEST_CELLS = 3
LARGEST_GROWTH = 1e4
"""The factor by which N and D may grow or shrink together."""
HALVINGS = 60
AHEAD = 10.0
"""Compute beyond the largest cell at which the multiplier is predicted, as a factor."""

Verdict = Literal["holds", "grows", "shrinks", "undecided"]


@dataclass(frozen=True)
class Comparison:
    """A multiplier for each cell, their mean, and their trend over compute."""

    variant: Points
    multipliers: Array
    is_paired: tuple[bool, ...]
    """Whether the base has the same cell."""
    mean: Interval
    """Geometric mean over the cells."""
    slope: Interval
    """Exponent p of the multiplier ~ C^p."""
    ahead: Interval
    """The multiplier at AHEAD times the largest compute."""
    verdict: Verdict


def compare(base: Fit, variant: Points, draws: Sequence[Law] = ()) -> Comparison:
    """Compare the runs of a variant with the law of the base.

    `draws`: laws of a bootstrap of the base; their spread widens the intervals.
    """
    check_points(variant, FEWEST_CELLS, "comparison")
    cells = _cells(base, variant)
    logs = _log_multipliers(base.law, cells)
    if not np.isfinite(logs).all():
        name = variant.names[int(np.isfinite(logs).argmin())]
        raise BadPoints(
            f"{name}: no amount of compute gives the base its loss, by the law of the base",
            "E of the base may be too high: train more cells of the base, or a larger one",
        )
    others = np.array([_log_multipliers(law, cells) for law in draws]).reshape(-1, len(logs))
    others = others[np.isfinite(others).all(1)]
    line = _Line(logs, np.log(variant.flops / variant.flops.max()), _steepness(base.law, cells), others)
    mean = line.interval(np.full(len(logs), 1 / len(logs)))
    slope, ahead = line.interval(line.solve[1]), line.interval(line.solve[0] + np.log(AHEAD) * line.solve[1])
    mean, ahead = (Interval(*(float(np.exp(min(value, 50.0))) for value in each)) for each in (mean, ahead))
    return Comparison(
        variant, np.exp(logs), tuple(map(bool, cells.is_paired)), mean, slope, ahead, _verdict(slope, ahead)
    )


@dataclass(frozen=True)
class _Cells:
    """The variant's cells, each with its loss as a ratio to the base's law at the cell."""

    parameters: Array
    tokens: Array
    flops: Array
    loss: Array
    base_loss: Array
    """Measured loss of the base at the cell; NaN if it has none."""
    cost: float
    """FLOPs of the base per parameter and token."""

    @property
    def is_paired(self) -> Array:
        return np.asarray(np.isfinite(self.base_loss))


def _cells(base: Fit, variant: Points) -> _Cells:
    """Cells are the same if their N and D differ by at most 1 %; a change may alter N a little."""
    points = base.points
    distance = np.maximum(
        np.abs(np.log(variant.parameters[:, None] / points.parameters)),
        np.abs(np.log(variant.tokens[:, None] / points.tokens)),
    )
    nearest = distance.argmin(1)
    same = distance[np.arange(len(variant)), nearest] <= 0.01
    base_loss = np.where(same, points.losses[nearest], np.nan)
    cost = float(np.median(points.flops / points.parameters / points.tokens))
    return _Cells(variant.parameters, variant.tokens, variant.flops, variant.losses, base_loss, cost or FLOPS_PER_TOKEN)


def _log_multipliers(law: Law, cells: _Cells) -> Array:
    """Log of the multiplier of each cell; NaN if the law never has the loss. Bisection over log s."""
    expected = law.loss(cells.parameters, cells.tokens)
    wanted = np.where(cells.is_paired, expected * cells.loss / cells.base_loss, cells.loss)
    low = np.full(len(wanted), -np.log(LARGEST_GROWTH))
    high = -low
    is_reached = law.loss(cells.parameters * np.exp(high), cells.tokens * np.exp(high)) < wanted
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_above = law.loss(cells.parameters * np.exp(middle), cells.tokens * np.exp(middle)) > wanted
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    spent = np.log(cells.cost * cells.parameters * cells.tokens / cells.flops)
    return np.asarray(np.where(is_reached, low + high + spent, np.nan))


def _steepness(law: Law, cells: _Cells) -> Array:
    """How fast log loss falls with log compute at each cell, N and D growing together.

    A multiplier is the noisier the flatter the law is: the noise of log loss is divided by this.
    """
    size, data = law.a * cells.parameters**-law.alpha, law.b * cells.tokens**-law.beta
    fall = (law.alpha * size + law.beta * data) / 2 / law.loss(cells.parameters, cells.tokens)
    return np.asarray(fall / np.where(cells.is_paired, np.sqrt(2.0), 1.0))


class _Line:
    """A weighted straight line through log multipliers, over log compute."""

    def __init__(self, logs: Array, log_c: Array, steepness: Array, others: Array) -> None:
        self.logs, self.others, self.weights = logs, others, steepness**2
        columns = np.column_stack([np.ones_like(log_c), log_c])
        root = steepness[:, None]
        self.solve = np.linalg.pinv(columns * root) * steepness
        """Rows that give the line's value at the largest compute, and its slope."""
        self.freedom = len(logs) - columns.shape[1]
        left = logs - columns @ self.solve @ logs
        self.noise = float((self.weights * left**2).sum() / max(1, self.freedom))

    def interval(self, row: Array) -> Interval:
        """A linear estimate with a t interval: scatter of the cells about the line, and spread of the base's laws."""
        value = float(row @ self.logs)
        variance = self.noise * float((row**2 / self.weights).sum())
        if len(self.others):
            variance += float(np.var(self.others @ row))
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom) * np.sqrt(variance))
        return Interval(value, value - half, value + half)


def _verdict(slope: Interval, ahead: Interval) -> Verdict:
    """Holds: the multiplier ahead is on one side of 1 for sure, and no trend is seen."""
    if slope.low > 0:
        return "grows"
    if slope.high < 0:
        return "shrinks"
    return "holds" if ahead.low > 1 or ahead.high < 1 else "undecided"

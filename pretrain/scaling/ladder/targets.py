"""The predictions of a ladder's law for the runs that were not in the fit, beside their measured losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.scaling.ladder.table import Row
from pretrain.scaling.laws.bootstrap import Interval, interval
from pretrain.scaling.laws.study import Study


@dataclass(frozen=True)
class Prediction:
    """One target."""

    row: Row
    loss: Interval
    """By the law, with its 95 % interval."""
    extrapolation: float
    """Its compute as a multiple of the largest in the fit."""

    @property
    def measured(self) -> float | None:
        value = self.row.values["validation_loss"]
        return None if value is None else float(value)

    @property
    def error(self) -> float | None:
        """Predicted over measured, minus 1; None before the run is finished."""
        return None if self.measured is None else self.loss.value / self.measured - 1


def predictions(rows: Sequence[Row], study: Study) -> list[Prediction]:
    """The targets of a ladder."""
    largest = float(study.points.flops.max())
    found = []
    for row in rows:
        if row.cell.is_target:
            size, tokens = float(row.values[study.points.size]), float(row.cell.tokens)
            draws = np.array([float(law.loss(size, tokens)) for law in study.bootstrap.laws])
            loss = interval(float(study.fit.law.loss(size, tokens)), draws)
            found.append(Prediction(row, loss, 6 * size * tokens / largest))
    return found


def prediction_lines(found: Sequence[Prediction]) -> list[str]:
    """A line for each target."""
    lines = []
    for each in found:
        measured = "not finished" if each.measured is None else f"measured {each.measured:.4f}"
        error = "" if each.error is None else f", error {each.error:+.2%}"
        interval_ = f"[{each.loss.low:.4f}, {each.loss.high:.4f}]"
        lines.append(
            f"{each.row.cell.name}: predicted {each.loss.value:.4f} {interval_}, {measured}{error}; "
            f"{each.extrapolation:.2f} times the largest compute in the fit"
        )
    return lines

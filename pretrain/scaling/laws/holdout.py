"""The check beside a fit: leave out the largest runs, fit the others, and compare prediction with measurement."""

from dataclasses import dataclass

import numpy as np

from pretrain.scaling.laws.parametric import NUM_PARAMETERS, Law, fit_parametric
from pretrain.scaling.laws.points import Array, BadPoints, Points

SAME_SIZE = 0.01
"""Sizes are equal if their logs differ by at most this."""


@dataclass(frozen=True)
class Holdout:
    """Predictions of runs that were not in the fit."""

    left_out: str
    """The runs, in words."""
    which: str
    """The same in short."""
    law: Law
    points: Points
    predicted: Array

    @property
    def errors(self) -> Array:
        """Predicted over measured loss, minus 1."""
        return np.asarray(self.predicted / self.points.losses - 1)

    @property
    def worst(self) -> float:
        return float(np.abs(self.errors).max())

    @property
    def median(self) -> float:
        return float(np.median(np.abs(self.errors)))


def leave_out_largest_size(points: Points, over_penalty: float = 1.0) -> Holdout | None:
    """Predict the runs of the largest N from the others; None if too few are left."""
    largest = points.parameters.max()
    is_out = np.log(largest / points.parameters) <= SAME_SIZE
    return _predict(points, is_out, f"N = {largest:.3g}, the largest size", "the largest size", over_penalty)


def leave_out_largest_compute(points: Points, over_penalty: float = 1.0) -> Holdout | None:
    """Predict the run of the most compute from the others; None if too few are left."""
    most = int(points.flops.argmax())
    is_out = np.arange(len(points)) == most
    return _predict(
        points, is_out, f"{points.names[most]}, the run of the most compute", "the most compute", over_penalty
    )


def _predict(points: Points, is_out: np.ndarray, left_out: str, which: str, over_penalty: float) -> Holdout | None:
    kept, out = points.only(~is_out), points.only(is_out)
    if len(kept) < NUM_PARAMETERS:
        return None
    try:
        law = fit_parametric(kept, over_penalty).law
    except BadPoints:
        return None
    return Holdout(left_out, which, law, out, law.loss(out.parameters, out.tokens))

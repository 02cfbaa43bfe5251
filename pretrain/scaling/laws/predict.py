"""Predictions of a fitted law: the best size, tokens and loss of a budget, and how far that is from the points."""

from dataclasses import dataclass

import numpy as np

from pretrain.scaling.laws.bootstrap import Bootstrap, Interval, interval
from pretrain.scaling.laws.parametric import Law
from pretrain.scaling.laws.points import FLOPS_PER_TOKEN, Array, BadPoints, Points

LARGEST_LOG = 500.0
"""The greatest log of a size: a law whose exponent is almost 0 has no best one."""
FAR = 10.0
"""A prediction beyond so many times the points' range is called far."""


@dataclass(frozen=True)
class Prediction:
    """A run of least loss for its compute, or of a given size, with 95 % intervals of the law."""

    flops: Interval
    parameters: Interval
    tokens: Interval
    loss: Interval
    scatter: float
    """Root mean square of the fit's residuals: a single run is so far from the law, as a share of its loss."""
    beyond: dict[str, float]
    """C, N and D over the largest of the points; below 1 if that is larger."""

    @property
    def is_far(self) -> bool:
        return max(self.beyond.values()) > FAR


def for_flops(refits: Bootstrap, flops: float) -> Prediction:
    """The best run of compute C = 6 N D."""
    return _prediction(refits, [_best_for_flops(law, flops) for law in (refits.fit.law, *refits.laws)])


def for_tokens(refits: Bootstrap, tokens: float) -> Prediction:
    """The run whose compute is spent best with D tokens: its size is the best one for 6 N D."""
    return _prediction(refits, [_best_for_tokens(law, tokens) for law in (refits.fit.law, *refits.laws)])


def for_cell(refits: Bootstrap, parameters: float, tokens: float) -> Prediction:
    """The run of N parameters and D tokens."""
    laws = (refits.fit.law, *refits.laws)
    return _prediction(refits, [(parameters, tokens, float(law.loss(parameters, tokens))) for law in laws])


def _best_for_flops(law: Law, flops: float) -> tuple[float, float, float]:
    size = float(law.best_size(flops))
    tokens = flops / FLOPS_PER_TOKEN / size
    return size, tokens, float(law.loss(size, tokens))


def _best_for_tokens(law: Law, tokens: float) -> tuple[float, float, float]:
    """Inverts the best D for a compute: alpha A / N^alpha = beta B / D^beta."""
    log_size = (np.log(law.alpha * law.a / (law.beta * law.b)) + law.beta * np.log(tokens)) / law.alpha
    size = float(np.exp(min(log_size, LARGEST_LOG)))
    return size, tokens, float(law.loss(size, tokens))


def _prediction(refits: Bootstrap, rows: list[tuple[float, float, float]]) -> Prediction:
    """The first row is that of the fit; the others give its intervals."""
    if not np.isfinite(rows[0]).all() or min(rows[0]) <= 0:
        raise BadPoints(
            "the law has no best run for this budget", "its exponents are not identified: `scale fit` says why"
        )
    size, tokens, loss = np.array(rows).T
    flops = FLOPS_PER_TOKEN * size * tokens
    points = refits.fit.points
    return Prediction(
        _spread(flops),
        _spread(size),
        _spread(tokens),
        _spread(loss),
        float(np.sqrt((refits.fit.residuals**2).mean())),
        _beyond(points, flops[0], size[0], tokens[0]),
    )


def _spread(values: Array) -> Interval:
    if np.ptp(values) <= 1e-9 * abs(values[0]):
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    return interval(float(values[0]), values[1:])


def _beyond(points: Points, flops: float, size: float, tokens: float) -> dict[str, float]:
    return {
        "C": float(flops / points.flops.max()),
        "N": float(size / points.parameters.max()),
        "D": float(tokens / points.tokens.max()),
    }

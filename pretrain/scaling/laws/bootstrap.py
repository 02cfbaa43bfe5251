"""How sure a fit is: refits with points drawn again, standard errors, and intervals with bias-corrected percentiles.

Whole points are drawn, not residuals: small and short runs scatter more than large ones, and an interval from drawn
residuals would be too narrow.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from pretrain.scaling.laws.parametric import Fit, Law
from pretrain.scaling.laws.points import Array
from pretrain.scaling.laws.surface import descend

DRAWS = 1000
LEVEL = 0.95
STEPS, TOLERANCE = 100, 1e-6
"""Bounds of each refit, which starts at the fit to all points."""
MOST_AT_ONCE = 200_000
"""Points of all refits that are computed together, so that memory stays small."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Bootstrap:
    """The laws of the refits."""

    fit: Fit
    laws: tuple[Law, ...]

    def values(self, name: str) -> Array:
        """A field or property of every law."""
        return np.array([getattr(law, name) for law in self.laws])

    def standard_error(self, name: str) -> float:
        return float(self.values(name).std())

    def interval(self, name: str) -> Interval:
        return interval(getattr(self.fit.law, name), self.values(name))


def bootstrap(fit: Fit, draws: int = DRAWS, seed: int = 0) -> Bootstrap:
    """Refit `draws` times with points drawn with replacement."""
    rng, size = np.random.default_rng(seed), len(fit.points)
    weights = rng.multinomial(size, np.full(size, 1 / size), draws).astype(float)
    at_once = max(1, MOST_AT_ONCE // size)
    thetas = [
        descend(
            np.repeat(fit.theta[None], len(part), 0),
            fit.surface.with_data(fit.surface.log_loss, part),
            STEPS,
            TOLERANCE,
        )[0]
        for part in np.split(weights, range(at_once, draws, at_once))
    ]
    return Bootstrap(fit, tuple(fit.laws(np.concatenate(thetas))))


def interval(value: float, draws: Array, level: float = LEVEL) -> Interval:
    """The bias-corrected percentile interval (Efron 1981); draws that are NaN are left out."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Interval(value, float("nan"), float("nan"))
    below = np.clip(((draws < value).mean() + (draws <= value).mean()) / 2, 1 / len(draws), 1 - 1 / len(draws))
    shift, tail = 2 * stats.norm.ppf(below), stats.norm.ppf((1 + level) / 2)
    low, high = np.quantile(draws, stats.norm.cdf([shift - tail, shift + tail]))
    return Interval(value, float(low), float(high))

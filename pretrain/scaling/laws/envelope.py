"""The least loss for compute C: the envelope of the runs and its power law L(C) = E + K / C^gamma."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.scaling.laws.points import Array, Points, check_points

NUM_PARAMETERS = 3
GRID = np.geomspace(0.01, 1.0, 60)
"""Exponents that are tried; two more grids, each around the best, refine them."""


@dataclass(frozen=True)
class ComputeLaw:
    """L(C) = e + k / C^gamma."""

    e: float
    k: float
    gamma: float

    def loss(self, flops: Array | float) -> Array:
        return np.asarray(self.e + self.k * np.asarray(flops, dtype=float) ** -self.gamma)


@dataclass(frozen=True)
class Envelope:
    """The runs that no cheaper run beats, and their law."""

    points: Points
    law: ComputeLaw


def on_envelope(points: Points) -> NDArray[np.bool_]:
    """Which points have a lower loss than every point of less or equal compute."""
    order = np.lexsort((points.losses, points.flops))
    lowest = np.minimum.accumulate(points.losses[order])
    is_lower = np.concatenate([[True], points.losses[order][1:] < lowest[:-1]])
    chosen = np.zeros(len(points), dtype=bool)
    chosen[order] = is_lower
    return chosen


def fit_envelope(points: Points) -> Envelope:
    """The envelope's law by least squares of relative residuals; raises BadPoints for fewer than four points on it."""
    kept = points.only(on_envelope(points))
    check_points(kept, NUM_PARAMETERS + 1, "law L(C) of the envelope")
    return Envelope(kept, _laws(kept, np.ones((1, len(kept))))[0])


def bootstrap_envelopes(envelope: Envelope, draws: int, rng: np.random.Generator) -> list[ComputeLaw]:
    """Laws of envelopes whose points are drawn again."""
    size = len(envelope.points)
    return _laws(envelope.points, rng.multinomial(size, np.full(size, 1 / size), draws).astype(float))


def _laws(points: Points, weights: Array) -> list[ComputeLaw]:
    """The best laws for weights (f, n): for a given gamma the law is linear in E and K, which are not negative."""
    log_c = np.log(points.flops)
    centre = log_c.mean()
    gammas = np.broadcast_to(GRID, (len(weights), len(GRID)))
    spread = np.log(GRID[1] / GRID[0])
    rows = np.arange(len(weights))
    for _ in range(3):
        e, k, error = _linear(gammas, log_c - centre, points.losses, weights)
        best = error.argmin(1)
        chosen = gammas[rows, best]
        near = np.linspace(-spread, spread, 21)
        gammas, spread = chosen[:, None] * np.exp(near), spread / 10
    at = (rows, best)
    return [
        ComputeLaw(float(e_), float(k_ * np.exp(gamma * centre)), float(gamma))
        for e_, k_, gamma in zip(e[at], k[at], chosen, strict=True)
    ]


def _linear(gammas: Array, log_c: Array, losses: Array, weights: Array) -> tuple[Array, Array, Array]:
    """E, K at the centre, and the squared error, each (f, g), for gammas (f, g)."""
    term = np.exp(-gammas[:, :, None] * log_c) / losses  # (f, g, n)
    one = 1 / losses
    w = weights[:, None, :]
    ee, et, tt = (w * one * one).sum(2), (w * one * term).sum(2), (w * term * term).sum(2)
    e1, t1 = (w * one).sum(2), (w * term).sum(2)
    determinant = ee * tt - et**2
    with np.errstate(divide="ignore", invalid="ignore"):
        e, k = (e1 * tt - t1 * et) / determinant, (ee * t1 - et * e1) / determinant
        is_fine = (determinant > 1e-12 * ee * tt) & (e >= 0) & (k >= 0)
        e, k = np.where(is_fine, e, 0.0), np.where(is_fine, k, t1 / tt)
    error = (w * (e[:, :, None] * one + k[:, :, None] * term - 1) ** 2).sum(2)
    return e, k, error

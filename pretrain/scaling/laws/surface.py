"""The loss of a law L(N, D) = E + A / N^alpha + B / D^beta, and the fit of its five numbers to many data sets at once.

The fit works in coordinates theta = (log E, log of A's term, log of B's term, alpha, beta). The terms are taken at the
geometric means of N and D, which makes the coordinates nearly independent. Shapes: f data sets, n points, 5 numbers.
The objective is that of Hoffmann et al. 2022, equation 3: the sum of Huber losses of the log residuals.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DELTA = 1e-3
"""The residual in log loss at which the Huber loss turns from a square into a straight line."""
LARGEST_EXPONENT = 3.0
SMALLEST_EXPONENT = 1e-3
SMALLEST_SHARE = 1e-6
"""A term is at least this share of the smallest loss, so that its logarithm stays finite."""
LARGEST_TERM = 5.0
"""Log of the greatest term over the greatest loss."""
ALL = np.ones(5)
DAMPING = (1e-3, 1e-9, 1e9)
"""Levenberg-Marquardt: at the start, least and most."""


@dataclass(frozen=True)
class Surface:
    """The points of a fit: centred log N and log D (n,), log losses (f or 1, n), weights of points (f or 1, n)."""

    log_n: Array
    log_d: Array
    log_loss: Array
    weights: Array
    over_penalty: float = 1.0
    """Factor on the residual of a point whose loss the law over-estimates."""

    def with_data(self, log_loss: Array, weights: Array) -> "Surface":
        return Surface(self.log_n, self.log_d, log_loss, weights, self.over_penalty)

    def rows(self, chosen: NDArray[np.int64]) -> "Surface":
        """The data sets with these numbers."""
        loss = self.log_loss if len(self.log_loss) == 1 else self.log_loss[chosen]
        weights = self.weights if len(self.weights) == 1 else self.weights[chosen]
        return self.with_data(loss, weights)


def terms(theta: Array, log_n: Array, log_d: Array) -> tuple[Array, Array]:
    """Log of the predicted loss (f, n), and the shares (3, f, n) of E, A's term and B's term in it."""
    constant = np.broadcast_to(theta[:, 0, None], (len(theta), len(log_n)))
    size = theta[:, 1, None] - theta[:, 3, None] * log_n
    data = theta[:, 2, None] - theta[:, 4, None] * log_d
    values = np.exp(np.stack([constant, size, data]))
    total = values.sum(0)
    return np.log(total), values / total


def objective(theta: Array, surface: Surface) -> Array:
    """The sum of Huber losses of each data set (f,)."""
    residual = terms(theta, surface.log_n, surface.log_d)[0] - surface.log_loss
    return _huber(residual, surface)


def _huber(residual: Array, surface: Surface) -> Array:
    size = np.abs(residual)
    loss = np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))
    return np.asarray((surface.weights * _sided(residual, surface) * loss).sum(1))


def _sided(residual: Array, surface: Surface) -> Array | float:
    return 1.0 if surface.over_penalty == 1.0 else np.where(residual > 0, surface.over_penalty, 1.0)


def gradient(theta: Array, surface: Surface) -> tuple[Array, Array]:
    """The objective (f,) of f fits at once, and its gradient (f, 5)."""
    predicted, shares = terms(theta, surface.log_n, surface.log_d)
    residual = predicted - surface.log_loss
    pull = surface.weights * _sided(residual, surface) * np.clip(residual, -DELTA, DELTA)
    return _huber(residual, surface), np.einsum("fn,kfn->fk", pull, jacobian_of(shares, surface))


def jacobian_of(shares: Array, surface: Surface) -> Array:
    """Derivatives (5, f, n) of the log of the predicted loss."""
    return np.stack([*shares, -surface.log_n * shares[1], -surface.log_d * shares[2]])


def bounds(surface: Surface) -> tuple[Array, Array]:
    """Least and greatest coordinates, each (f or 1, 5)."""
    lowest = surface.log_loss.min(1) + np.log(SMALLEST_SHARE)
    highest = surface.log_loss.max(1) + LARGEST_TERM
    exponents = np.ones((len(lowest), 2))
    return (
        np.column_stack([lowest, lowest, lowest, SMALLEST_EXPONENT * exponents]),
        np.column_stack([highest, highest, highest, LARGEST_EXPONENT * exponents]),
    )


def descend(
    theta: Array, surface: Surface, steps: int = 100, tolerance: float = 1e-7, free: Array = ALL
) -> tuple[Array, Array]:
    """Levenberg-Marquardt on all data sets together: the coordinates (f, 5) and objectives (f,) that it reaches.

    Each step weights a residual by the slope of its Huber loss over its size, which makes the problem one of least
    squares. A data set is left out once its objective falls by less than `tolerance` of itself. `free` (5,) is 0 for
    coordinates that stay as they are.
    """
    theta = np.clip(theta, *bounds(surface))
    value = objective(theta, surface)
    damping, live = np.full(len(theta), DAMPING[0]), np.arange(len(theta))
    for _ in range(steps):
        part = surface.rows(live)
        new = np.clip(theta[live] - _step(theta[live], part, damping[live], free), *bounds(part))
        reached = objective(new, part)
        better = reached < value[live]
        small = better & (value[live] - reached < tolerance * value[live])
        theta[live] = np.where(better[:, None], new, theta[live])
        value[live] = np.where(better, reached, value[live])
        damping[live] = np.clip(damping[live] * np.where(better, 0.2, 5.0), *DAMPING[1:])
        live = live[~small & (damping[live] < DAMPING[2])]
        if not len(live):
            break
    return theta, value


def _step(theta: Array, surface: Surface, damping: Array, free: Array) -> Array:
    predicted, shares = terms(theta, surface.log_n, surface.log_d)
    residual = predicted - surface.log_loss
    weight = surface.weights * _sided(residual, surface) * np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
    jacobian = np.moveaxis(jacobian_of(shares, surface), 0, 1) * free[:, None]  # (f, 5, n)
    weighted = jacobian * weight[:, None, :]
    normal = weighted @ jacobian.transpose(0, 2, 1)
    slope = (weighted @ residual[:, :, None])[:, :, 0]
    diagonal = np.einsum("fkk->fk", normal)
    diagonal += damping[:, None] * diagonal + 1e-14 * (1.0 + diagonal.max(1, keepdims=True))
    return np.asarray(np.linalg.solve(normal, slope[:, :, None])[:, :, 0])

"""Approach 3 of Hoffmann et al. 2022: the law L(N, D) = E + A / N^alpha + B / D^beta, fitted to all points.

For a pair of exponents the law is linear in E, A and B. So a grid of exponents gives good starts (variable
projection), the best of them descend together, and L-BFGS finishes the best three.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from pretrain.scaling.laws.points import FLOPS_PER_TOKEN, Array, Points, check_points
from pretrain.scaling.laws.surface import Surface, bounds, descend, gradient, objective

NUM_PARAMETERS = 5
GRID = np.linspace(0.05, 1.5, 24)
"""Exponents at which the descent may start."""
STARTS, POLISHED = 24, 3
SMALLEST_START = 1e-3
"""Least value of a term at a start, in units of the loss."""


@dataclass(frozen=True)
class Law:
    """L(N, D) = e + a / N^alpha + b / D^beta."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, parameters: Array | float, tokens: Array | float) -> Array:
        n, d = np.asarray(parameters, dtype=float), np.asarray(tokens, dtype=float)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # far outside a law's range
            return np.asarray(self.e + self.a * n**-self.alpha + self.b * d**-self.beta)

    @property
    def frontier_exponent(self) -> float:
        """The exponent of C in the best N for compute C."""
        return self.beta / (self.alpha + self.beta)

    def best_size(self, flops: Array | float) -> Array:
        """The N of least loss if 6 N D = C (Hoffmann et al. 2022, equation 4)."""
        gain = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return np.asarray(gain * (np.asarray(flops, dtype=float) / FLOPS_PER_TOKEN) ** self.frontier_exponent)

    def best_loss(self, flops: Array | float) -> Array:
        """The least loss for compute C."""
        size = self.best_size(flops)
        return self.loss(size, np.asarray(flops, dtype=float) / FLOPS_PER_TOKEN / size)


@dataclass(frozen=True)
class Fit:
    """The law of least objective, with what is needed to fit again."""

    points: Points
    law: Law
    objective: float
    theta: Array
    """Coordinates (5,) of the law, see `surface`."""
    surface: Surface

    @property
    def residuals(self) -> Array:
        """Log of the predicted over the measured loss (n,)."""
        predicted = self.law.loss(self.points.parameters, self.points.tokens)
        return np.log(predicted / self.points.losses)

    def laws(self, theta: Array) -> list[Law]:
        """The laws at coordinates (f, 5)."""
        return [law_at(row, self.points) for row in theta]


def fit_parametric(points: Points, over_penalty: float = 1.0) -> Fit:
    """The law that fits the points best; raises BadPoints if they cannot be fitted.

    `over_penalty` above 1 counts a point that the law over-estimates so many times: runs that were tuned badly are
    above the law, none is below it.
    """
    check_points(points, NUM_PARAMETERS, "law of five parameters")
    surface = surface_of(points, over_penalty)
    theta, value = descend(_starts(surface), surface, steps=300, tolerance=1e-9)
    polished = [_polish(theta[i], surface) for i in np.argsort(value)[:POLISHED]]
    best, lowest = min(polished, key=lambda pair: pair[1])
    return Fit(points, law_at(best, points), lowest, best, surface)


def surface_of(points: Points, over_penalty: float = 1.0) -> Surface:
    """The points in the coordinates of the fit."""
    log_n, log_d = np.log(points.parameters), np.log(points.tokens)
    one = np.ones((1, len(points)))
    return Surface(log_n - log_n.mean(), log_d - log_d.mean(), np.log(points.losses)[None], one, over_penalty)


def law_at(theta: Array, points: Points) -> Law:
    """The law at coordinates (5,), which are centred on these points."""
    log_n, log_d = np.log(points.parameters).mean(), np.log(points.tokens).mean()
    e, size, data, alpha, beta = (float(value) for value in theta)
    return Law(float(np.exp(e)), float(np.exp(size + alpha * log_n)), alpha, float(np.exp(data + beta * log_d)), beta)


def _starts(surface: Surface) -> Array:
    """The best coordinates (STARTS, 5) of the grid, with E, A and B by least squares of the relative residuals."""
    alpha, beta = (axis.ravel() for axis in np.meshgrid(GRID, GRID, indexing="ij"))
    columns = np.stack(
        [
            np.ones((len(alpha), surface.log_n.size)),
            np.exp(-alpha[:, None] * surface.log_n),
            np.exp(-beta[:, None] * surface.log_d),
        ],
        axis=1,
    ) / np.exp(surface.log_loss[0])
    normal = columns @ columns.transpose(0, 2, 1) + 1e-12 * np.eye(3)
    values = np.linalg.solve(normal, columns.sum(2)[:, :, None])[:, :, 0]
    theta = np.column_stack([np.log(np.maximum(values, SMALLEST_START)), alpha, beta])
    return np.asarray(theta[np.argsort(objective(theta, surface))[:STARTS]])


def _polish(theta: Array, surface: Surface) -> tuple[Array, float]:
    def value_and_slope(x: Array) -> tuple[float, Array]:
        value, slope = gradient(x[None], surface)
        return float(value[0]), slope[0]

    limits = list(zip(*(each[0] for each in bounds(surface)), strict=True))
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500}
    start, _ = value_and_slope(theta)
    found = minimize(value_and_slope, theta, jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return (np.asarray(found.x), float(found.fun)) if found.fun < start else (theta, start)

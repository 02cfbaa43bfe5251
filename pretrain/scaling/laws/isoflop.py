"""Approach 2 of Hoffmann et al. 2022: a bowl of loss against size for each budget, and the law of their minima."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.scaling.laws.points import Array, BadPoints, Points, check_points

SAME_BUDGET = 0.1
"""Points whose log C differ by at most this are of one budget."""
FEWEST_IN_BUDGET = 5
FEWEST_BUDGETS = 3


@dataclass(frozen=True)
class Bowl:
    """log loss = curve[0] + curve[1] x + curve[2] x^2 with x = log N - centre, for one budget."""

    flops: float
    """Geometric mean of the budget's points."""
    members: NDArray[np.int64]
    """Indices of its points."""
    centre: float
    curve: Array
    minimum: float
    """log N of least loss; NaN if the bowl has no minimum within its sizes."""

    def log_loss(self, log_n: Array) -> Array:
        x = log_n - self.centre
        return np.asarray(self.curve[0] + self.curve[1] * x + self.curve[2] * x**2)


@dataclass(frozen=True)
class IsoFlop:
    """N = coefficient * C^exponent has the least loss."""

    points: Points
    exponent: float
    coefficient: float
    bowls: tuple[Bowl, ...]
    """Those with a minimum."""
    skipped: tuple[str, ...]
    """Budgets that were left out, with the reason."""

    def best_size(self, flops: Array | float) -> Array:
        return np.asarray(self.coefficient * np.asarray(flops, dtype=float) ** self.exponent)


def fit_isoflop(points: Points) -> IsoFlop:
    """Fit the bowls and their minima; raises BadPoints if fewer than three budgets have a minimum."""
    check_points(points, FEWEST_BUDGETS * FEWEST_IN_BUDGET, "IsoFLOP fit")
    members = budgets(points.flops)
    minima, bowls, skipped = _minima(points, members, np.ones((1, len(points)))), [], []
    for group, (curve, minimum) in zip(members, minima, strict=True):
        flops = float(np.exp(np.log(points.flops[group]).mean()))
        if np.isnan(minimum[0]):
            skipped.append(f"{flops:.3g} FLOPs: no minimum within its {len(group)} sizes")
            continue
        centre = float(np.log(points.parameters[group]).mean())
        bowls.append(Bowl(flops, group, centre, curve[0], float(minimum[0])))
    if len(bowls) < FEWEST_BUDGETS:
        raise BadPoints(
            f"{len(bowls)} compute budgets have a minimum over sizes, and the IsoFLOP fit needs {FEWEST_BUDGETS}",
            f"a budget is {FEWEST_IN_BUDGET} sizes within {SAME_BUDGET:.0%} of one compute, on both sides of the best",
            *skipped,
        )
    log_c = np.log([bowl.flops for bowl in bowls])
    exponent, intercept = _line(log_c, np.array([[bowl.minimum for bowl in bowls]]))
    return IsoFlop(points, float(exponent[0]), float(np.exp(intercept[0])), tuple(bowls), tuple(skipped))


def bootstrap_exponents(fit: IsoFlop, draws: int, rng: np.random.Generator) -> Array:
    """Exponents (draws,) of fits to points that are drawn again within each budget; NaN if too few minima are left."""
    weights = np.zeros((draws, len(fit.points)))
    for bowl in fit.bowls:
        size = len(bowl.members)
        weights[:, bowl.members] = rng.multinomial(size, np.full(size, 1 / size), draws)
    minima = _minima(fit.points, [bowl.members for bowl in fit.bowls], weights)
    return _line(np.log([bowl.flops for bowl in fit.bowls]), np.stack([minimum for _, minimum in minima], axis=1))[0]


def budgets(flops: Array) -> list[NDArray[np.int64]]:
    """Indices of the points of each budget, by compute: the fullest window of SAME_BUDGET first, then the next."""
    log_c, is_left, found = np.log(flops), np.ones(len(flops), dtype=bool), []
    slack = 1e-9
    while is_left.any():
        ordered = np.sort(log_c[is_left])
        counts = np.searchsorted(ordered, ordered + SAME_BUDGET + slack) - np.arange(len(ordered))
        if counts.max() < FEWEST_IN_BUDGET:
            break
        low = ordered[counts.argmax()]
        inside = is_left & (log_c >= low - slack) & (log_c <= low + SAME_BUDGET + slack)
        found.append(np.flatnonzero(inside))
        is_left &= ~inside
    return sorted(found, key=lambda group: float(log_c[group].mean()))


def _minima(points: Points, groups: list[NDArray[np.int64]], weights: Array) -> list[tuple[Array, Array]]:
    """The curve (f, 3) and the minimum's log N (f,) of each budget, for weights of points (f, n)."""
    found = []
    for group in groups:
        log_n, log_loss, weight = np.log(points.parameters[group]), np.log(points.losses[group]), weights[:, group]
        x = log_n - log_n.mean()
        columns = np.stack([np.ones_like(x), x, x**2])
        normal = np.einsum("kn,fn,jn->fkj", columns, weight, columns) + 1e-12 * np.eye(3)
        curve = np.linalg.solve(normal, np.einsum("kn,fn->fk", columns, weight * log_loss)[:, :, None])[:, :, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            lowest = -curve[:, 1] / (2 * curve[:, 2])
        is_inside = (curve[:, 2] > 0) & (lowest > x.min()) & (lowest < x.max())
        found.append((curve, np.where(is_inside, lowest + log_n.mean(), np.nan)))
    return found


def _line(x: Array, y: Array) -> tuple[Array, Array]:
    """Slopes and intercepts (f,) of y (f, n) over x (n,), without the missing values."""
    known = np.isfinite(y)
    count = known.sum(1)
    weight = np.where(count[:, None] >= FEWEST_BUDGETS, known, np.nan)
    filled = np.where(known, y, 0.0)
    mean_x, mean_y = (weight * x).sum(1) / count, (weight * filled).sum(1) / count
    offset = x - mean_x[:, None]
    slope = (weight * offset * filled).sum(1) / (weight * offset**2).sum(1)
    return slope, mean_y - slope * mean_x

"""Which parameters of a law its points determine, and an interval for E when they do not.

A bootstrap cannot show this alone: where the objective is flat, every refit stays near its start. So the law is also
made linear at the fit, which gives the variance of each parameter for the noise that the residuals show.
"""

import numpy as np
from scipy import stats

from pretrain.scaling.laws.bootstrap import LEVEL, Bootstrap, Interval
from pretrain.scaling.laws.parametric import NUM_PARAMETERS, Fit
from pretrain.scaling.laws.surface import LARGEST_EXPONENT, SMALLEST_EXPONENT, descend, jacobian_of, terms

WIDEST = {"e": 0.5, "alpha": 1.0, "beta": 1.0}
"""A parameter is identified if its interval is at most so wide, relative to its value."""
COORDINATE = {"e": 0, "alpha": 3, "beta": 4}
FEWEST_SPARE = 3
"""Points beyond the number of parameters that a law needs before any of them counts as identified."""
INFLATION = 1e8
"""The variance of a parameter over that with all others known, beyond which its term is not separate."""
ONE_LINE = 0.9999
"""The correlation of log N and log D from which on they count as one."""
NOISE = 2e-3
"""Log loss by which two equal runs differ, if there are too few points to estimate it."""
PROFILE = 80
"""Values of E that are tried."""


def not_identified(refits: Bootstrap) -> dict[str, str]:
    """Parameters that the points do not determine, with the reason."""
    fit, size = refits.fit, len(refits.fit.points)
    spare = size - NUM_PARAMETERS
    if spare < FEWEST_SPARE:
        return dict.fromkeys(WIDEST, f"{size} points for {NUM_PARAMETERS} parameters leave {spare} to judge them by")
    if _is_one_line(fit):
        return dict.fromkeys(("alpha", "beta"), "D follows from N in these points, so the terms of N and D are one")
    found, widths = {}, _linear_widths(fit)
    for name, widest in WIDEST.items():
        value = getattr(fit.law, name)
        each = refits.interval(name)
        if name != "e" and not 1.01 * SMALLEST_EXPONENT < value < 0.99 * LARGEST_EXPONENT:
            found[name] = f"the fit is at the end of the range {SMALLEST_EXPONENT:g} to {LARGEST_EXPONENT:g}"
        elif not np.isfinite(widths[name]):
            found[name] = "the points do not separate its term from the others"
        elif max(each.high - each.low, widths[name]) > widest * value:
            found[name] = f"its interval is wider than {widest:g} times its value"
    return found


def _is_one_line(fit: Fit) -> bool:
    """Whether log D is a straight line of log N, as in a ladder of 20 tokens for each parameter."""
    log_n, log_d = fit.surface.log_n, fit.surface.log_d
    lengths = float(np.linalg.norm(log_n) * np.linalg.norm(log_d))
    return lengths > 1e-6 and abs(float(log_n @ log_d)) > ONE_LINE * lengths


def wide_interval(refits: Bootstrap, name: str) -> Interval:
    """The interval of a parameter that is not identified.

    E: the values that fit about as well. An exponent: the interval of the law that is linear at the fit, within the
    range of exponents. Either holds that of the bootstrap.
    """
    fit, drawn = refits.fit, refits.interval(name)
    if name == "e":
        wide = profile_of_e(fit)
    else:
        half = min(_linear_widths(fit)[name] / 2, LARGEST_EXPONENT)
        wide = Interval(
            drawn.value, max(SMALLEST_EXPONENT, drawn.value - half), min(LARGEST_EXPONENT, drawn.value + half)
        )
    return Interval(drawn.value, min(wide.low, drawn.low), max(wide.high, drawn.high))


def _linear_widths(fit: Fit) -> dict[str, float]:
    """Width of the 95 % interval of each parameter in the law that is linear at the fit; inf: it is not determined."""
    _, shares = terms(fit.theta[None], fit.surface.log_n, fit.surface.log_d)
    jacobian = jacobian_of(shares, fit.surface)[:, 0]
    length = np.linalg.norm(jacobian, axis=1)
    used = np.flatnonzero(length > 1e-9 * length.max())
    unit = jacobian[used] / length[used, None]
    inflation = np.full(NUM_PARAMETERS, np.inf)
    inflation[used] = np.diag(np.linalg.pinv(unit @ unit.T + 1e-14 * np.eye(len(used)), rcond=1e-15))
    inflation[inflation > INFLATION] = np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = _noise(fit) * np.sqrt(inflation) / length
    scale = {"e": fit.law.e, "alpha": 1.0, "beta": 1.0}
    normal = 2 * float(stats.norm.ppf((1 + LEVEL) / 2))
    widths = {name: float(normal * errors[place] * scale[name]) for name, place in COORDINATE.items()}
    return {name: width if np.isfinite(width) else float("inf") for name, width in widths.items()}


def _noise(fit: Fit) -> float:
    """Standard deviation of the residuals, with the degrees of freedom that are left."""
    spare = len(fit.points) - NUM_PARAMETERS
    return float(np.sqrt((fit.residuals**2).sum() / spare)) if spare > 0 else NOISE


def profile_of_e(fit: Fit) -> Interval:
    """E with the interval of values at which the other four parameters still fit about as well (an F test)."""
    size, spare = len(fit.points), len(fit.points) - NUM_PARAMETERS
    tried = np.linspace(0.0, 0.999 * fit.points.losses.min(), PROFILE)[1:]
    start = np.repeat(fit.theta[None], len(tried), 0)
    start[:, 0] = np.log(tried)
    free = np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    theta, _ = descend(start, fit.surface, steps=300, tolerance=1e-9, free=free)
    predicted, _ = terms(theta, fit.surface.log_n, fit.surface.log_d)
    squares = ((predicted - fit.surface.log_loss) ** 2).sum(1)
    allowed = _allowed(float((fit.residuals**2).sum()), size, spare)
    inside = tried[squares <= allowed]
    step = float(tried[1] - tried[0])
    low = min([fit.law.e, *inside.tolist()]) - step
    return Interval(fit.law.e, max(0.0, low), max([fit.law.e, *inside.tolist()]) + step)


def _allowed(least: float, size: int, spare: int) -> float:
    """The sum of squared residuals up to which a fit counts as one of the same quality."""
    if spare < 1:
        return float(size * NOISE**2)
    return max(least * (1 + float(stats.f.ppf(LEVEL, 1, spare)) / spare), size * NOISE**2 / 4)

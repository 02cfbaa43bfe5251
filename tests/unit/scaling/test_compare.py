"""The effective compute multiplier of a change, against ladders whose multiplier is known."""

import numpy as np
import pytest

from pretrain.scaling.laws.bootstrap import bootstrap
from pretrain.scaling.laws.compare import compare
from pretrain.scaling.laws.parametric import fit_parametric
from pretrain.scaling.laws.points import BadPoints, Points, points_of
from tests.unit.scaling.ladders import LAW, ladder


def variant(multiplier: float, trend: float = 0.0, noise: float = 0.0005, shift: float = 1.0) -> Points:
    """Runs that are as good as the base with `multiplier` times the compute, times (C / 1e20)^trend."""
    rng = np.random.default_rng(1)
    n = np.geomspace(3e7, 3e9, 6) * shift
    d = n * np.geomspace(5, 160, 5)[2]
    growth = np.sqrt(multiplier * (6 * n * d / 1e20) ** trend)
    return points_of(n, d, LAW.loss(n * growth, d * growth) * np.exp(noise * rng.standard_normal(6)))


@pytest.mark.parametrize("shift", [1.0, 1.3], ids=["same cells", "other cells"])
def test_the_multiplier_of_a_change_is_found(shift: float) -> None:
    fit = fit_parametric(ladder(noise=0.0005))
    found = compare(fit, variant(1.4, shift=shift), bootstrap(fit, 50).laws)
    assert found.mean.low < 1.4 < found.mean.high and found.mean.high - found.mean.low < 0.3
    assert found.verdict == "holds" and set(found.is_paired) == {shift == 1.0}


@pytest.mark.parametrize(("trend", "verdict"), [(-0.1, "shrinks"), (0.1, "grows")])
def test_a_trend_over_compute_is_seen(trend: float, verdict: str) -> None:
    found = compare(fit_parametric(ladder(noise=0.0005)), variant(1.4, trend))
    assert found.verdict == verdict and found.slope.low < trend < found.slope.high


def test_no_change_is_undecided() -> None:
    found = compare(fit_parametric(ladder(noise=0.0005)), variant(1.0))
    assert found.verdict == "undecided" and found.mean.low < 1 < found.mean.high


def test_a_variant_that_costs_more_compute_is_worth_less() -> None:
    fit, runs = fit_parametric(ladder(noise=0.0005)), variant(1.4)
    dear = Points(tuple(type(each)(**{**vars(each), "flops": 1.4 * each.flops}) for each in runs.points))
    ratio = compare(fit, runs).mean.value / compare(fit, dear).mean.value
    assert ratio == pytest.approx(1.4, rel=1e-6)


def test_losses_below_the_irreducible_one_are_refused() -> None:
    n = np.array([1e8, 2e8, 3e8])
    with pytest.raises(BadPoints, match="no amount of compute gives the base its loss"):
        compare(fit_parametric(ladder(noise=0.0005)), points_of(n, 25 * n, [1.5, 1.4, 1.3]))

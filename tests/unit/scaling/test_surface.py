"""The fit of L(N, D): it finds the truth, is a minimum, and does not depend on the order or scale of points."""

import numpy as np
import pytest

from pretrain.scaling.laws.parametric import Fit, Law, fit_parametric, surface_of
from pretrain.scaling.laws.points import BadPoints, points_of
from pretrain.scaling.laws.surface import gradient, objective
from tests.unit.scaling.ladders import LAW, ladder


def test_points_of_a_law_give_its_numbers_back() -> None:
    found = fit_parametric(ladder(noise=0.0))
    for name in ("e", "a", "alpha", "b", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(LAW, name), rel=2e-3), name
    assert found.objective < 1e-10


def test_the_gradient_is_that_of_the_objective() -> None:
    fit = fit_parametric(ladder())
    surface = surface_of(fit.points, over_penalty=3.0)
    theta = fit.theta + 0.01
    numeric = [
        (objective((theta + step)[None], surface) - objective((theta - step)[None], surface))[0] / 2e-6
        for step in 1e-6 * np.eye(5)
    ]
    assert gradient(theta[None], surface)[1][0] == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_no_neighbour_has_a_lower_objective() -> None:
    fit = fit_parametric(ladder())
    near = fit.theta + np.random.default_rng(0).normal(0, 1e-4, (200, 5))
    assert (objective(near, fit.surface) >= fit.objective * (1 - 1e-9)).all()


def test_order_of_points_does_not_matter() -> None:
    points = ladder()
    order = np.random.default_rng(1).permutation(len(points))
    shuffled = points_of(points.parameters[order], points.tokens[order], points.losses[order])
    assert fit_parametric(shuffled).objective == pytest.approx(fit_parametric(points).objective, rel=1e-6)


def test_the_compute_optimal_size_has_the_least_loss() -> None:
    flops = 1e21
    best = float(LAW.best_size(flops))
    sizes = best * np.array([0.9, 1.0, 1.1])
    losses = LAW.loss(sizes, flops / 6 / sizes)
    assert losses.argmin() == 1 and losses[1] == pytest.approx(float(LAW.best_loss(flops)))


def test_a_penalty_on_over_estimates_lowers_the_law() -> None:
    points = ladder(undertuned=0.25)
    plain, sided = fit_parametric(points), fit_parametric(points, over_penalty=5.0)
    assert (sided.residuals > 1e-4).sum() < (plain.residuals > 1e-4).sum()
    assert _error(sided) < _error(plain)


def _error(fit: Fit) -> float:
    """How far the law is from the truth at a larger cell."""
    return float(abs(fit.law.loss(1e11, 2e12) - LAW.loss(1e11, 2e12)))


def test_too_few_points_are_refused() -> None:
    points = ladder()
    with pytest.raises(BadPoints, match="4 points remain, and the law of five parameters needs at least 5"):
        fit_parametric(points.only(np.arange(len(points)) < 4))


def test_a_law_of_known_numbers() -> None:
    assert float(Law(1.0, 8.0, 0.5, 27.0, 1 / 3).loss(64.0, 27.0)) == pytest.approx(1 + 1 + 9)

"""Fits of published runs: those in PRETRAIN_PLANNER_DATA or ../shared/planner."""

import numpy as np
import pytest

from pretrain.scaling.laws.bootstrap import bootstrap
from pretrain.scaling.laws.hyperparameter_fit import fit_law, leave_one_out
from pretrain.scaling.laws.hyperparameters import named_law
from pretrain.scaling.laws.isoflop import fit_isoflop
from pretrain.scaling.laws.parametric import fit_parametric
from tests.benchmarks.scaling_laws import DATA, NOTE, TARGET_OBJECTIVE, epoch_points, sweeps

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"published runs are missing: {DATA} does not exist")


def test_epochs_points_reach_the_known_objective() -> None:
    fit = fit_parametric(epoch_points())
    assert len(fit.points) == 240 and fit.objective <= TARGET_OBJECTIVE
    assert (fit.law.e, fit.law.alpha, fit.law.beta) == pytest.approx((1.8172, 0.34731, 0.36717), rel=1e-3)


def test_standard_errors_of_epochs_points_are_known() -> None:
    refits = bootstrap(fit_parametric(epoch_points()), 1000)
    for name, noted in NOTE.items():
        assert refits.standard_error(name) == pytest.approx(noted, rel=0.1), name


def test_isoflop_of_epochs_points_is_near_a_half() -> None:
    assert 0.47 < fit_isoflop(epoch_points()).exponent < 0.52


def test_own_law_is_fitted_on_step_laws_runs() -> None:
    found, own = fit_law("own", sweeps()), named_law("own")
    assert sum(len(sweep.loss) for sweep in sweeps()) > 1800
    for one, other in ((found.lr, own.lr), (found.batch, own.batch)):
        assert list(vars(one).values()) == pytest.approx(list(vars(other).values()), rel=2e-3, abs=5e-4)


def test_own_law_is_near_the_best_of_a_cell_left_out() -> None:
    assert np.median(leave_one_out(sweeps())) < 0.002

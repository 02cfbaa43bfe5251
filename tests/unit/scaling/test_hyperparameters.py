"""Laws of learning rate and batch: by name, and fitted to sweeps whose law is known."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from pretrain.scaling.laws.hyperparameter_fit import Sweep, fit_law, leave_one_out
from pretrain.scaling.laws.hyperparameters import LAWS, HyperparameterLaw, named_law

STEP_LAW = named_law("step_law")


def sweep(law: HyperparameterLaw, parameters: float, tokens: float) -> Sweep:
    """A grid around the best pair, whose loss is a bowl in the logs."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(-2, 2.2, 9), np.linspace(-2.1, 2, 8)))
    lr, batch = law.learning_rate(parameters, tokens), law.batch_tokens(parameters, tokens)
    loss = 3.0 * (1 + 0.01 * x**2 + 0.006 * y**2 - 0.004 * x * y)
    return Sweep(parameters, tokens, lr * np.exp(x), batch * np.exp(y), loss)


SWEEPS = [sweep(STEP_LAW, n, m * n) for n in (1e8, 3e8, 1e9) for m in (10, 40)]


def test_a_law_is_found_again_from_its_sweeps() -> None:
    found = fit_law("again", SWEEPS)
    for one, other in ((found.lr, STEP_LAW.lr), (found.batch, STEP_LAW.batch)):
        assert vars(one) == pytest.approx(vars(other), rel=1e-4, abs=1e-6)


def test_the_law_of_the_others_is_near_the_best_of_each_cell() -> None:
    assert leave_one_out(SWEEPS) == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize("name", LAWS)
def test_every_named_law_is_sensible_for_a_known_model(name: str) -> None:
    law = named_law(name)
    assert 1e-4 < law.learning_rate(1e9, 2e10) < 3e-3 and 1e5 < law.batch_tokens(1e9, 2e10) < 2e6
    assert law.name == name and law.source


def test_an_unknown_law_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"unknown learning-rate law\n  hint: did you mean step_law\?"):
        named_law("steplaw")

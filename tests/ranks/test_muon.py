"""Muon divides its matrices over ranks, keeps one moment of each, and resumes. test_parity.py tests the numbers."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from tests.ranks.test_init_from import new_run, old_run
from tests.ranks.test_resume import resume, save_and_go_on
from tests.support.models import batches, run_config
from tests.support.parts import full_except
from tests.support.ranks import run_ranks
from tests.support.training import start, train, whole_state

SETTINGS = ("optim=muon", "optim.clip_grad_norm=0.2", "optim.eps=1e-4")
MATRICES = 7
"""A layer of Llama has queries, keys, values and their projection; gate, up and down."""


def config_of(dp: int, *overrides: str, **values: object) -> RunConfig:
    return run_config("llama", *batches(dp, 2), *SETTINGS, *overrides, **values)


def runs(here: Runtime, config: RunConfig) -> int:
    """Matrices that this rank orthogonalises in one step."""
    engine = start(here, config)
    train(here, config, engine, [0])
    count: int = engine.optimizer.adamw.orthogonalise.runs
    return count


@pytest.mark.parametrize(("zero", "tp", "dp"), full_except([(0, 1, 2), (1, 1, 2), (3, 2, 2), (1, 2, 1)], [(3, 2, 2)]))
def test_ranks_divide_the_matrices(zero: int, tp: int, dp: int) -> None:
    """Each matrix has one owner, and no rank has much more than its share."""
    layers, ranks = 4, tp * dp
    config = config_of(dp, f"model.num_layers={layers}", zero_stage=zero, tp=tp)
    found = run_ranks(runs, ranks, config)
    assert sum(found) == layers * MATRICES
    assert max(found) <= layers * MATRICES / ranks + 3, found


def state_of(here: Runtime, config: RunConfig) -> dict[str, np.ndarray]:
    engine = start(here, config)
    train(here, config, engine, range(3))
    return whole_state(engine)


def test_matrices_have_a_momentum_and_the_rest_two_moments() -> None:
    kinds: dict[str, set[str]] = {}
    for name, value in run_ranks(state_of, 2, config_of(2, zero_stage=3))[0].items():
        kind, _, tensor = name.partition("/")
        kinds.setdefault(tensor, set()).add(kind)
        assert value.any(), name
    of_muon = {name for name, found in kinds.items() if found == {"weight", "momentum"}}
    assert all(name.startswith("decoder.layers.") and ".linear_" in name for name in of_muon) and of_muon
    assert all(kinds[name] == {"weight", "exp_avg", "exp_avg_sq"} for name in kinds.keys() - of_muon)


def test_bf16_iterations_are_near_those_of_fp32() -> None:
    exact, near = (
        run_ranks(state_of, 1, config_of(1, f"optim.muon.precision={precision}"))[0] for precision in ("fp32", "bf16")
    )
    difference = max(float(np.abs(near[name] - value).max()) for name, value in exact.items() if "weight/" in name)
    assert 0 < difference < 3e-3


@pytest.mark.parametrize(
    ("precision", "zero", "tp"), full_except([("fp32", 3, 1), ("bf16", 1, 2), ("bf16", 0, 1)], [("bf16", 1, 2)])
)
def test_a_resume_changes_no_bit(precision: str, zero: int, tp: int, tmp_path: Path) -> None:
    """In the same layout; another one restores the same state, bit for bit."""
    config = config_of(2 // tp, f"optim.muon.precision={precision}", zero_stage=zero, tp=tp)
    whole, saved = run_ranks(save_and_go_on, 2, config, tmp_path)[0]
    part, restored = run_ranks(resume, 2, config, tmp_path)[0]
    elsewhere = run_ranks(resume, 1, config_of(1, zero_stage=0), tmp_path)[0][1]
    assert part.numbers == whole.numbers
    for found, expected in ((restored, saved), (elsewhere, saved), (part.state, whole.state)):
        assert found.keys() == expected.keys()
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize(("before", "after"), full_except([("muon", "adamw"), ("adamw", "muon")], [("muon", "adamw")]))
def test_a_run_begins_with_the_weights_of_either_optimizer(before: str, after: str, tmp_path: Path) -> None:
    first, second = (config_of(1, f"optim.name={name}") for name in (before, after))
    saved, after_save = run_ranks(old_run, 1, first, tmp_path / "old")[0]
    state, _, result, _ = run_ranks(new_run, 1, second, tmp_path / "old", tmp_path / "new")[0]
    weights = {name for name in saved if name.startswith("weight/")}
    assert weights == {name for name in state if name.startswith("weight/")}
    assert all(state[name].tobytes() == saved[name].tobytes() for name in weights)
    assert result.loss == pytest.approx(after_save.loss, rel=1e-6)


def test_states_on_the_host_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.offload\.optimizer='?cpu'?: optim=muon multiplies whole matrices"):
        check_run(config_of(1, "engine.offload.optimizer=cpu"), 1)

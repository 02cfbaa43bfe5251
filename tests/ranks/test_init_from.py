"""A run that begins with another's weights has them bit for bit in any layout, and nothing else of it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.checkpoint import store
from pretrain.checkpoint.init_from import load_initial
from pretrain.checkpoint.on_disk import newest_whole, read_checkpoint, refuse_damage
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import StepResult
from pretrain.engine.optimizer.adam import MOMENTS
from pretrain.run.state import RunState
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train, whole_state

SAVED = 2
State = dict[str, np.ndarray]


def config_of(dp: int, **layout: Any) -> RunConfig:
    settings = ("model.num_layers=3", "optim.clip_grad_norm=0.2", "optim.eps=1e-4")
    return run_config("gpt", *settings, *batches(dp, 2), **layout)


def store_of(engine: object, folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, groups=engine.groups, keep_last=2, keep_every=0)


def old_run(here: Runtime, config: RunConfig, folder: Path) -> tuple[State, StepResult]:
    """Train and save; returns what was saved and the step after it."""
    engine = start(here, config)
    train(here, config, engine, range(SAVED))
    state = whole_state(engine)
    store_of(engine, folder).save(engine, RunState(step=SAVED), {})
    (result,) = train(here, config, engine, [SAVED])
    return state, result


def new_run(
    here: Runtime, config: RunConfig, old: Path, folder: Path
) -> tuple[State, dict[str, float], StepResult, dict[str, object]]:
    """Begin with the weights; returns the state, its counters, a step on the batch after the save, and the origin."""
    engine = start(here, config)
    found = newest_whole(old / "checkpoints") if here.rank == 0 else None
    origin = load_initial(
        store_of(engine, folder), engine, found, lambda: read_checkpoint(next((old / "checkpoints").iterdir()))
    )
    state, counters = whole_state(engine), engine.counters()
    (result,) = train(here, config, engine, [SAVED])
    return state, counters, result, origin["init_from"]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State, StepResult]:
    folder = tmp_path_factory.mktemp("old")
    return folder, *run_ranks(old_run, 2, config_of(2, zero_stage=2), folder)[0]


@pytest.mark.parametrize(
    ("world_size", "dp", "layout"),
    [
        (2, 2, {"zero_stage": 2}),
        (1, 1, {"zero_stage": 0}),
        (3, 3, {"zero_stage": 3}),
        (3, 1, {"pp": 3, "zero_stage": 1}),
        (4, 2, {"tp": 2, "sp": True, "zero_stage": 3}),
    ],
)
def test_initial_weights_give_the_loss_of_their_run(
    old: tuple[Path, State, StepResult], tmp_path: Path, world_size: int, dp: int, layout: dict[str, Any]
) -> None:
    folder, saved, after = old
    for state, counters, result, origin in run_ranks(new_run, world_size, config_of(dp, **layout), folder, tmp_path):
        assert state.keys() == saved.keys()
        for name, value in state.items():
            if name.startswith(MOMENTS):
                assert not value.any(), name
            else:
                assert value.tobytes() == saved[name].tobytes(), name
        assert counters["adam_steps"] == 0
        assert result.loss == pytest.approx(after.loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(after.grad_norm, rel=1e-5)
        assert origin["step"] == SAVED and len(origin["manifest_sha256"]) == 64
    assert not list(tmp_path.iterdir())


def digests_read(here: Runtime, config: RunConfig, old: Path, folder: Path) -> tuple[list[str], str]:
    """Names of the files whose digests this rank compares when a run begins with weights, and how that ends."""
    engine = start(here, config)
    compared: list[str] = []

    def spy(path: Path, files: dict[str, object], *, digests: bool = True) -> None:
        compared.extend(files if digests else ())
        refuse_damage(path, files, digests=digests)

    store.refuse_damage = spy
    found = newest_whole(old / "checkpoints", digests=False) if here.rank == 0 else None
    assert not compared, "before the ranks met"
    try:
        load_initial(
            store_of(engine, folder), engine, found, lambda: read_checkpoint(next((old / "checkpoints").iterdir()))
        )
    except RunError as error:
        return compared, str(error)
    return compared, "loaded"


def test_ranks_share_digest_checks_and_all_refuse_damage(old, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(old[0], copied)
    (checkpoint,) = (copied / "checkpoints").glob("step-*")
    config = config_of(2, zero_stage=2)
    outcomes = run_ranks(digests_read, 2, config, copied, tmp_path)
    assert [outcome for _, outcome in outcomes] == ["loaded", "loaded"]
    everything = sorted(path.name for path in checkpoint.iterdir() if path.name != "manifest.json")
    assert sorted(outcomes[0][0] + outcomes[1][0]) == everything

    content = bytearray((checkpoint / "__1_0.distcp").read_bytes())
    content[-9] ^= 1
    (checkpoint / "__1_0.distcp").write_bytes(content)
    for _, outcome in run_ranks(digests_read, 2, config, copied, tmp_path):
        assert "__1_0.distcp is damaged: its SHA-256 differs" in outcome

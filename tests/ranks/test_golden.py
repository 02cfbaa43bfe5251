"""An engine of any layout restores from the checkpoint in tests/golden."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.store import CheckpointStore
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.golden.make_checkpoint import DIGESTS, HERE, config, digests
from tests.support.ranks import run_ranks
from tests.support.training import start, whole_state


def restored(here: Runtime, run: Path, values: dict[str, Any]) -> tuple[dict[str, Any], RunState]:
    """Digests of the engine's state, and the state of the run."""
    engine = start(here, config(**values))
    store = CheckpointStore(run, groups=engine.groups, keep_last=1, keep_every=0)
    newest = store.newest()
    assert newest is not None
    state = store.restore(newest, engine)
    return digests(whole_state(engine)), state


@pytest.mark.parametrize(
    ("version", "ranks", "values"),
    [
        (1, 1, {"tp": 1, "zero_stage": 0}),
        (2, 4, {}),
        (2, 1, {"tp": 1, "zero_stage": 0}),
        (2, 3, {"tp": 1, "zero_stage": 2}),
        (2, 2, {"tp": 1, "pp": 2, "zero_stage": 1}),
    ],
)
def test_the_golden_checkpoint_is_restored_bit_for_bit(
    tmp_path: Path, version: int, ranks: int, values: dict[str, Any]
) -> None:
    shutil.copytree(HERE / f"checkpoint-v{version}", tmp_path / "checkpoints" / "step-00000002")
    for found, state in run_ranks(restored, ranks, tmp_path, values):
        assert found == json.loads(DIGESTS.read_text())
        assert state == RunState(step=2, position=48, tokens=768)

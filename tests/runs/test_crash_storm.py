"""Killed many times at any moment, most of them while it saves, a run of four ranks ends as if undisturbed.

PRETRAIN_STORM_KILLS and PRETRAIN_STORM_SEED in the environment ask for another number, or for the same again.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import DATA, ROOT, SHAPE, TRAINING, environment, train_records

RANKS = 4
COMPUTED = ("loss", "grad_norm", "lr", "tokens", "samples", "epoch", "bad_steps", "batch_hash")


def train(folder: Path, dataset: Path, steps: int, kills: int, seed: int) -> tuple[Path, int]:
    """The run's folder, and how often it was killed."""
    folder.mkdir()
    run = folder / "run"
    storm = {
        "overrides": [
            *DATA,
            *SHAPE,
            *TRAINING,
            f"data.path={dataset}",
            f"run.dir={run}",
            f"train.max_steps={steps}",
            "parallel.tp=2",
            "engine.zero_stage=1",
            "model.hidden_dropout=0.1",
            "evaluation.every_steps=0",
            "checkpoint.every_steps=7",
            f"checkpoint.local.path={folder / 'disk'}",
            "checkpoint.local.every_steps=3",
        ],
        "run_dir": str(run),
        "saves": [str(run / "checkpoints"), str(folder / "disk")],
        "ranks": RANKS,
        "kills": kills,
        "seed": seed,
        "log": str(folder / "log"),
    }
    command = [sys.executable, "-m", "tests.support.storm", json.dumps(storm)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"{done.stderr}\n{(folder / 'log').read_text()[-3000:]}"
    return run, int(done.stdout.split()[-1])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kills", "steps"), [(4, 30), pytest.param(30, 170, marks=pytest.mark.full)])
def test_a_storm_of_kills_leaves_no_trace_in_the_run(tmp_path: Path, dataset: Path, kills: int, steps: int) -> None:
    kills = int(os.environ.get("PRETRAIN_STORM_KILLS", kills))
    seed = int(os.environ.get("PRETRAIN_STORM_SEED", random.SystemRandom().randrange(10**6)))
    print(f"PRETRAIN_STORM_SEED={seed} asks for the same moments")
    whole, _ = train(tmp_path / "whole", dataset, steps, 0, seed)
    disturbed_run, killed = train(tmp_path / "killed", dataset, steps, kills, seed)
    assert killed == kills
    undisturbed, disturbed = train_records(whole), train_records(disturbed_run)
    assert list(disturbed) == list(undisturbed) == list(range(1, steps + 1))
    for step, record in undisturbed.items():
        assert {name: disturbed[step][name] for name in COMPUTED} == {name: record[name] for name in COMPUTED}
    last = f"checkpoints/step-{steps:08d}"
    for path in sorted((whole / last).glob("*.distcp")):
        assert path.read_bytes() == (disturbed_run / last / path.name).read_bytes()

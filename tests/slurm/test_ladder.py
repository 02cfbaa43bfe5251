"""`pretrain scale` on a real Slurm: one array, branches that wait for their trunk, and a table that no kill changes."""

import contextlib
import csv
import os
import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from pretrain.run.attempts import read_attempts
from pretrain.run.sweep import read_sweep
from pretrain.scaling.ladder.folder import read_ladder
from pretrain.scaling.ladder.table import RESULTS
from tests.support.runs import DATA, ROOT, SHAPE, TRAINING, Workplace, environment, prepare_dataset
from tests.support.slurm import is_throw_away, wait_until
from tests.support.slurm_jobs import PLANT

pytestmark = [pytest.mark.usefixtures("slurm"), pytest.mark.slow]

KILLS = 5
SECONDS = 300


def write_ladder_file(place: Workplace, name: str) -> str:
    """A trunk with one branch, and a target: three runs of some dozen steps."""
    kept = [word for word in (*DATA, *SHAPE, *TRAINING) if not word.startswith(("train.max_steps", "model.num_layers"))]
    own = ["lr_schedule=wsd", "lr_schedule.warmup_steps=2", "cluster.backoff_seconds=1", "cluster.exclude_after=0"]
    sizes = {"width_per_layer": 32, "head_size": 16, "ffn_ratio": 2.0}
    content = {
        "name": name,
        "overrides": [*kept, *own, f"data.path={place.dataset}"],
        "sizes": {"layers": [1], **sizes},
        "tokens": {"multiples": [0.03, 0.06], "trunk": True},
        "targets": {"sizes": {"layers": [2], **sizes}, "tokens": {"multiples": [0.01]}},
    }
    path = place.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path.name


def results(folder: Path) -> list[dict[str, str]]:
    """The columns of table.csv that no clock changes."""
    with (folder / "table.csv").open(newline="") as file:
        return [{key: row[key] for key in RESULTS} for row in csv.DictReader(file)]


def live_rank(run_dir: Path) -> psutil.Process | None:
    """The rank that trains this run, once its attempt has made two steps."""
    done = read_attempts(run_dir)
    if not done or done[-1].ended is not None:
        return None
    log = run_dir / "logs" / f"attempt-{done[-1].number:04d}"
    if sum(path.read_bytes().count(b"  loss ") for path in log.glob("*-rank-00000.log")) < 2:
        return None
    word = f"run.dir={run_dir.relative_to(run_dir.parents[3])}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if word in words and "launch.slurm.rank_main" not in words and "RANK" in process.environ():
                return process
    return None


def test_five_kills_leave_the_table_as_it_is(tmp_path: Path) -> None:
    if not is_throw_away():
        pytest.skip("ranks are killed here: this needs a throw-away cluster")
    place = Workplace(tmp_path, prepare_dataset(tmp_path))
    here = place.command("scale", "submit", write_ladder_file(place, "here"), "--local", "--at-once", "2")
    assert here.returncode == 0, here.stderr

    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(PLANT)
    path = os.pathsep.join([str(planted), str(ROOT)])
    variables = {"PYTHONPATH": path, "PRETRAIN_VENV": sys.prefix, "PLANTED_SECONDS": "0.25"}
    file = write_ladder_file(place, "there")
    done = place.command("scale", "submit", file, env=variables)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "ladders/there"
    (job,) = read_sweep(folder).jobs
    branch = job_state(f"{job.job}_1", "%E")
    assert f"afterok:{job.job}_0" in branch, branch
    status = place.command("scale", "status", file)
    assert f"waits in the queue as {job.job}_1" in status.stdout, status.stdout
    again = place.command("scale", "submit", file, env=variables)
    assert "nothing to submit" in again.stderr, again.stderr

    chance, runs = random.Random(5), [tmp_path / cell.run_dir for cell in read_ladder(folder)]
    killed: list[str] = []
    found: list[psutil.Process] = []

    def a_rank_is_found() -> bool:
        found[:] = [rank for run in runs if (rank := live_rank(run)) is not None]
        return bool(found)

    while len(killed) < KILLS:
        wait_until(a_rank_is_found, SECONDS, lambda: f"a rank to kill after {killed}\n{logs(folder)}")
        victim = chance.choice(found)
        killed.append(next(word for word in victim.cmdline() if word.startswith("run.name=")))
        victim.kill()
        victim.wait()
        wait_until(lambda: live_again(runs), SECONDS, lambda: f"the end of an attempt\n{logs(folder)}")
    wait_until(lambda: not job_state(job.job, "%T"), SECONDS, lambda: f"the end of the array\n{logs(folder)}")

    table = place.command("scale", "table", "ladders/there")
    assert table.returncode == 0, table.stderr
    assert results(folder) == results(tmp_path / "ladders/here")
    assert (folder / "points.csv").read_bytes() == (tmp_path / "ladders/here/points.csv").read_bytes()
    assert sum(len(read_attempts(run)) for run in runs) == len(runs) + KILLS
    status = place.command("scale", "status", file)
    assert status.stdout.count("finished") >= len(runs), status.stdout
    assert "nothing to submit" in place.command("scale", "submit", file).stderr


def live_again(runs: list[Path]) -> bool:
    """Whether no process of a killed attempt is taken for a live one: its end is on record."""
    return all(rank is None or rank.is_running() for rank in map(live_rank, runs))


def job_state(job: str, field: str) -> str:
    command = ["squeue", "-h", "-j", job, "-o", field]
    return subprocess.run(command, capture_output=True, text=True, env=environment()).stdout.strip()


def logs(folder: Path) -> str:
    return "\n".join(f"{path.name}\n{path.read_text()[-3000:]}" for path in sorted((folder / "logs").iterdir()))

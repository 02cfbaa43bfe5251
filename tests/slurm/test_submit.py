"""`pretrain submit` on a real Slurm: scripts that it takes and reads as they were meant, a sweep that is repaired."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm.batch_script import BatchJob, batch_script, slurm_path
from pretrain.config.cluster import ClusterConfig
from pretrain.config.cluster_checks import cluster_problems
from pretrain.config.load import load_run_config, read_run_config
from pretrain.run.sweep import last_outcome, read_sweep
from tests.support.runs import DATA, SHAPE, Workplace, prepare_dataset
from tests.support.slurm import ROOT, facts_of_job, wait_until

pytestmark = pytest.mark.usefixtures("slurm")

HOSTILE = ("a b", "a  b#c", "#", "'", '"', "\\", "a\\ b", "it's \"\\'x\\'\" #1", "$(id) `id` $x;|&*?", "é", "%j")


def sbatch(script: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "job.sh").write_text(script, encoding="utf-8")
    return subprocess.run(["sbatch", "--parsable", *flags, folder / "job.sh"], capture_output=True, text=True)


@pytest.mark.parametrize("text", HOSTILE)
def test_slurm_reads_each_word_as_it_was(text: str, tmp_path: Path) -> None:
    cluster = ClusterConfig(sbatch_flags=(f"--comment={text}", "--hold"))
    assert not list(cluster_problems(cluster))
    log = slurm_path(f"{tmp_path}/{text.replace(chr(92), '')}.log")
    done = sbatch(batch_script(cluster, BatchJob(text, log, str(tmp_path), ("true",))), tmp_path)
    assert done.returncode == 0, done.stderr
    facts = facts_of_job(done.stdout.strip())
    subprocess.run(["scancel", done.stdout.strip()], check=True)
    # Slurm prints a space after the comment.
    assert re.search(r"Comment=(.*) \n", facts)[1] == text  # type: ignore[index]
    assert f"JobName={text}\n" in facts and "NumNodes=1" in facts


def test_a_log_is_written_to_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "50 % it's #1"
    folder.mkdir()
    job = BatchJob("x", slurm_path(f"{folder}/slurm-") + "%j.log", str(folder), ("bash", "-c", 'echo "$PWD"'))
    done = sbatch(batch_script(ClusterConfig(), job), tmp_path)
    log = folder / f"slurm-{done.stdout.strip()}.log"
    wait_until(lambda: log.exists() and log.read_text() == f"{folder}\n", 30, lambda: f"{log}: {done.stderr}")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "cluster").glob("*.yaml")))
def test_sbatch_takes_the_script_of_every_example(name: str, tmp_path: Path) -> None:
    # No more CPUs and nodes than a small cluster has.
    cluster = load_run_config([f"cluster={name}", "cluster.cpus_per_task=1", "cluster.nodes=2"]).cluster
    job = BatchJob("pretrain", "/dev/null", str(tmp_path), ("true",))
    done = sbatch(batch_script(cluster, job), tmp_path, "--test-only")
    if "Invalid generic resource" in done.stderr:
        pytest.skip("this cluster has no GPUs")
    assert done.returncode == 0, done.stderr


def test_slurms_own_refusal_is_reported(tmp_path: Path) -> None:
    place = Workplace(tmp_path, prepare_dataset(tmp_path))
    done = place.command("submit", *place.train_overrides("x", "cluster.partition=nosuch"))
    assert done.returncode == 2 and "nosuch" not in done.stdout and "invalid partition" in done.stderr, done.stderr


def outcomes(place: Workplace, number: int) -> list[str | None]:
    return [last_outcome(place.run_dir(f"grid-{index}")) for index in range(number)]


def is_live(job: str) -> bool:
    done = subprocess.run(["squeue", "-h", "-o", "%F"], capture_output=True, text=True, check=True)
    return job in done.stdout.split()


@pytest.mark.slow
def test_a_rerun_completes_a_sweep_with_a_failed_member(tmp_path: Path) -> None:
    place = Workplace(tmp_path, prepare_dataset(tmp_path))
    small = place.train_overrides("unused", "train.max_steps=2", "lr_schedule.warmup_steps=0", "cluster.max_restarts=0")
    given = [word for word in small if not word.startswith(("run.name=", "optim.lr="))]
    in_the_way = place.run_dir("grid-1") / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no folder")
    done = place.command("submit", "-m", "--name", "grid", *given, "optim.lr=1e-3,2e-3,3e-3")
    assert done.returncode == 0, done.stderr
    sweep = read_sweep(tmp_path / "sweeps/grid")
    wait_until(lambda: not is_live(sweep.jobs[0].job), 240, lambda: "the end of the first array")
    logs = "\n".join(path.read_text() for path in sorted((tmp_path / "sweeps/grid/logs").iterdir()))
    first = outcomes(place, 3)
    assert (first[0], first[2]) == ("finished", "finished") and first[1] not in ("finished", None), logs

    in_the_way.unlink()
    done = place.command("submit", "--rerun", "sweeps/grid", "cluster.signal_seconds=60")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": finished\n") == 2 and "member 1, runs/grid-1: " in done.stderr
    # A second time while it waits or runs submits nothing.
    assert "nothing to submit" in place.command("submit", "--rerun", "sweeps/grid").stderr
    sweep = read_sweep(tmp_path / "sweeps/grid")
    assert [submitted.members for submitted in sweep.jobs] == [(0, 1, 2), (1,)]
    wait_until(lambda: not is_live(sweep.jobs[1].job), 240, lambda: "the end of the rerun")
    assert outcomes(place, 3) == ["finished"] * 3
    configs = [read_run_config(place.run_dir(f"grid-{index}") / "config.yaml") for index in range(3)]
    assert [config.optim.lr for config in configs] == [1e-3, 2e-3, 3e-3]
    assert [config.cluster.signal_seconds for config in configs] == [180, 60, 180]
    assert {config.tracking.wandb_group for config in configs} == {"grid"}
    attempts = (place.run_dir("grid-0") / "attempts.jsonl").read_text()
    assert [json.loads(line)["event"] for line in attempts.splitlines()] == ["began", "ended"]


def test_a_sweep_is_submitted_by_hand_with_its_script(tmp_path: Path) -> None:
    place = Workplace(tmp_path, prepare_dataset(tmp_path))
    given = [word for word in place.train_overrides("unused") if not word.startswith(("run.name=", "optim.lr="))]
    done = place.command("submit", "-m", "--no-submit", "--name", "hand", *given, "optim.lr=1,2")
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PRETRAIN_VENV": str(Path(sys.executable).parents[1])}
    # A task beyond the last member: it ends before a supervisor starts, in the words of launch.slurm.array_task.
    command = ["sbatch", "--parsable", "--array=7", "--output=%a.log", ROOT / "slurm" / "sweep.sh", "sweeps/hand"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    log = tmp_path / "7.log"
    words = "SLURM_ARRAY_TASK_ID=7: sweeps/hand has members 0 to 1; submit with --array=0-1"
    wait_until(lambda: log.exists() and words in log.read_text(), 60, lambda: str(log))


@pytest.mark.slow
def test_data_prepared_in_two_parts_of_a_job_are_those_of_one(tmp_path: Path) -> None:
    place = Workplace(tmp_path, prepare_dataset(tmp_path))
    given = [*DATA, *SHAPE, f"data.inputs=[{tmp_path}/corpus.jsonl]", "data.path=cut"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PRETRAIN_VENV": str(Path(sys.executable).parents[1])}
    command = ["sbatch", "--parsable", "--cpus-per-task=1", "--output=%j.log", ROOT / "slurm" / "prepare.sh", *given]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    job = done.stdout.strip()
    log = tmp_path / f"{job}.log"
    wait_until(lambda: log.exists() and "restart 0" in log.read_text(), 60, lambda: "the job's beginning")
    # As Slurm does a minute before the time limit.
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_until(lambda: "restart 1" in log.read_text(), 120, lambda: "the job's second part")
    wait_until(lambda: not is_live(job), 120, lambda: "its end")
    assert "queued again" in log.read_text()
    assert contents(tmp_path / "cut") == contents(place.dataset), log.read_text()


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".html", ".png")
    }

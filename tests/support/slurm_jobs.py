"""Small training jobs on a throw-away cluster, seen from outside: their steps, attempts, processes and logs."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pretrain.run.attempts import Attempt, read_attempts
from tests.support.runs import ROOT, Workplace, environment
from tests.support.slurm import facts_of_job, wait_until

SECONDS = 240
"""For whatever is waited for; idle machines take a tenth."""

PLANT = """
import os

if os.environ.get("RANK"):
    import time

    import data_pipeline.stream.loader as loader

    real_batches = loader.train_batches

    def train_batches(*args, **kwargs):
        for number, batch in enumerate(real_batches(*args, **kwargs), 1):
            time.sleep(float(os.environ.get("PLANTED_SECONDS", "0")))
            if os.environ.get("PLANTED_CRASH") == str(number):
                raise ValueError("planted")
            yield batch

    loader.train_batches = train_batches
"""
"""A module that Python imports at its start: steps take a while, or one raises."""


class Jobs:
    """A folder from which jobs are submitted."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._planted = place.folder / "planted"
        self._planted.mkdir()
        (self._planted / "sitecustomize.py").write_text(PLANT, encoding="utf-8")
        self._submitted: list[str] = []

    def submit(self, name: str, *overrides: str, flags: tuple[str, ...] = (), **variables: object) -> "LiveJob":
        """`sbatch slurm/pretrain.sh` for a run of this name."""
        log = self._place.folder / f"{name}.log"
        added = {variable: str(value) for variable, value in variables.items()}
        path = os.pathsep.join([str(self._planted), str(ROOT)])
        words = self._place.train_overrides(name, "cluster.backoff_seconds=1", *overrides)
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={log}", *flags, ROOT / "slurm" / "pretrain.sh", *words],
            cwd=self._place.folder,
            env=environment({"PYTHONPATH": path, "PRETRAIN_VENV": sys.prefix, **added}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self._submitted.append(done.stdout.strip())
        return LiveJob(done.stdout.strip(), log, self._place.run_dir(name))

    def cancel(self) -> None:
        subprocess.run(["scancel", *self._submitted], capture_output=True)


class LiveJob:
    """One job, and the run that it trains."""

    def __init__(self, job: str, log: Path, run_dir: Path) -> None:
        self.job, self.run_dir, self._log = job, run_dir, log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    @property
    def state(self) -> str:
        command = ["squeue", "-h", "-t", "all", "-j", self.job, "-o", "%T"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    @property
    def facts(self) -> str:
        """Slurm's facts about the job."""
        return facts_of_job(self.job)

    def attempts(self) -> list[Attempt]:
        return read_attempts(self.run_dir)

    def signal(self, *options: str) -> None:
        """scancel."""
        subprocess.run(["scancel", *options, self.job], check=True)

    def wait_for_training(self, attempt: int) -> None:
        """Until an attempt has made two steps of its own."""
        log = self.run_dir / "logs" / f"attempt-{attempt:04d}"
        self._wait(lambda: sum(f.read_bytes().count(b"  loss ") for f in log.glob("*-rank-00000.log")) >= 2, attempt)

    def wait_for_end(self, attempt: int) -> Attempt:
        """Until an attempt has ended."""
        self._wait(lambda: any(each.number == attempt and each.ended for each in self.attempts()), attempt)
        return next(each for each in self.attempts() if each.number == attempt)

    def wait_until_over(self) -> str:
        """Until Slurm is done with the job; its last state."""
        alive = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "")
        wait_until(lambda: self.state not in alive, SECONDS, lambda: f"the end of {self._stand}")
        return self.state

    def ranks(self) -> dict[int, psutil.Process]:
        """Rank -> its live process."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "train" in process.cmdline() and f"run.name={self.run_dir.name}" in process.cmdline():
                    of_process = process.environ()
                    if "launch.slurm.rank_main" not in process.cmdline() and "RANK" in of_process:
                        found[int(of_process["RANK"])] = process
        return found

    def step_daemon(self, rank: int) -> psutil.Process:
        """Slurm's own process above a rank."""
        (daemon,) = (each for each in self.ranks()[rank].parents() if each.name() == "slurmstepd")
        return daemon

    def wait_until_nothing_runs(self, seconds: float = 60) -> float:
        """Until no process of the run is left; how long that took."""
        began = time.monotonic()
        wait_until(lambda: not self._processes(), seconds, lambda: f"the end of {self._processes()}")
        return time.monotonic() - began

    @property
    def _stand(self) -> str:
        """The state of the job, for the message of a wait that timed out."""
        lines = self.log.splitlines()
        reported = [line for line in lines if line.startswith(("==", "   ", "pretrain: "))]
        return "\n".join([self._log.name, *lines[-15:], self.facts, f"Messages in {self._log.name}:", *reported])

    def _processes(self) -> list[psutil.Process]:
        name = f"run.name={self.run_dir.name}"
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if name in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _wait(self, happened: object, attempt: int) -> None:
        assert callable(happened)
        over = ("FAILED", "COMPLETED", "CANCELLED", "TIMEOUT")
        wait_until(
            lambda: bool(happened()) or self.state in over, SECONDS, lambda: f"attempt {attempt} of {self._stand}"
        )
        assert happened(), f"attempt {attempt} of {self._stand}"


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, capture_output=True)

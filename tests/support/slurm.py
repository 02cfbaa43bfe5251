"""A Slurm cluster for tests: the one that is there, or a throw-away one on this machine."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = "PRETRAIN_SLURM_SANDBOX"


@contextlib.contextmanager
def running_cluster(nodes: int = 2) -> Iterator[None]:
    """As long as the context lasts; skips the test, with the reason, where there can be none."""
    if shutil.which("sbatch") is None:
        pytest.skip("no Slurm here: there is no sbatch on the PATH")
    if _answers():
        yield
        return
    script = Path(os.environ.get(SANDBOX, ROOT.parent / "shared" / "slurm" / "cluster"))
    if not script.exists():
        pytest.skip(f"no Slurm cluster is running, and {SANDBOX} names no script that starts one")
    started = subprocess.run([script, "start", str(nodes)], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    said = subprocess.run([script, "env"], capture_output=True, text=True, check=True).stdout
    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", said.strip().partition("SLURM_CONF=")[2])
    try:
        yield
    finally:
        subprocess.run([script, "stop"], capture_output=True)
        patch.undo()


def facts_of_job(job: str) -> str:
    """What scontrol says of a job."""
    return subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout


def wait_until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def _answers() -> bool:
    """Whether a controller is up."""
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    return done.returncode == 0 and " is UP" in done.stdout

"""A Slurm cluster for tests: the one that is there, or a throw-away one on this machine."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = "PRETRAIN_SLURM_SANDBOX"


# What does not end is killed after twenty seconds. A node is not taken for lost because two busy cores answer late:
# tests that lose one report that to Slurm.
SETTINGS = "KillWait=20\nSlurmdTimeout=60\nMessageTimeout=10\n"


@contextlib.contextmanager
def running_cluster(nodes: int = 3) -> Iterator[None]:
    """As long as the context lasts; skips the test, with the reason, if no cluster can be started."""
    if shutil.which("sbatch") is None:
        pytest.skip("no Slurm here: there is no sbatch on the PATH")
    if _answers():
        yield
        return
    script = Path(os.environ.get(SANDBOX, ROOT.parent / "shared" / "slurm" / "cluster"))
    if not script.exists():
        pytest.skip(f"no Slurm cluster is running, and {SANDBOX} names no script that starts one")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as extra, pytest.MonkeyPatch.context() as patch:
        extra.write(SETTINGS)
        extra.flush()
        patch.setenv("SLURM_SANDBOX_EXTRA", extra.name)
        # Host names and process ids of their own, where this machine lets them.
        if (
            subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode
            == 0
        ):
            patch.setenv("SLURM_SANDBOX_ISOLATE", "1")
        started = subprocess.run([script, "start", str(nodes)], capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        said = subprocess.run([script, "env"], capture_output=True, text=True, check=True).stdout
        patch.setenv("SLURM_CONF", said.strip().partition("SLURM_CONF=")[2])
        try:
            yield
        finally:
            subprocess.run([script, "stop"], capture_output=True)


def is_throw_away() -> bool:
    """Whether all nodes are on this machine, and may be hurt."""
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    return re.search(r"ClusterName\s*=\s*sandbox\b", done.stdout) is not None


def facts_of_job(job: str) -> str:
    """The output of `scontrol show job`."""
    return subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout


def wait_until(happened: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """`what` is asked when the time is over: its text says what the state was then."""
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, f"not within {seconds} s: {what()}"
        time.sleep(0.3)


def _answers() -> bool:
    """Whether a controller is up."""
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    return done.returncode == 0 and " is UP" in done.stdout

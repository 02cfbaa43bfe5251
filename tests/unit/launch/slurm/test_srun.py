"""The watch over srun: it ends with srun, or soon after a rank failed."""

import os
import sys
import textwrap
import time

import pytest

from launch.slurm import srun
from launch.slurm.srun import Watched, run_step
from pretrain import slurm_client

FAILED = 'print("srun: error: node2: task 1: Killed", file=sys.stderr, flush=True)'


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_client, "kill_wait", lambda: 1.0)
    monkeypatch.setattr(srun, "AFTER_FAILURE_SECONDS", 1.0)


def watch(program: str) -> Watched:
    """As srun runs `program`."""
    command = [sys.executable, "-c", "import sys, time\n" + textwrap.dedent(program)]
    return run_step(command, os.environ, ["node1", "node2"], lambda: None, lambda: None)


def test_srun_that_hangs_after_a_failure_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    watched = watch(f"{FAILED}\ntime.sleep(60)")
    assert 2 <= time.monotonic() - began < 30
    assert watched.stuck and watched.exit_code == 137
    assert [(each.rank, each.node) for each in watched.failures] == [(1, "node2")]
    assert "srun has not ended 2 s after a rank failed" in capfd.readouterr().out


def test_srun_that_ends_after_a_failure_keeps_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srun, "AFTER_FAILURE_SECONDS", 60.0)
    watched = watch(f"{FAILED}\ntime.sleep(0.5)\nsys.exit(7)")
    assert not watched.stuck and watched.exit_code == 7 and len(watched.failures) == 1


@pytest.mark.parametrize("said", ["", 'print("srun: error: Cannot communicate with node 1", file=sys.stderr)'])
def test_srun_without_a_failed_rank_is_waited_for(said: str) -> None:
    """A node that does not answer may do so again."""
    assert watch(f"{said}\ntime.sleep(4)").exit_code == 0

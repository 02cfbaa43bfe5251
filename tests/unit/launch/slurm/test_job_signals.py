"""The batch process of a job keeps its exit code, whatever Slurm sends while it ends."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm.batch_shell import LISTEN, run
from launch.slurm.job_signals import after_slurm_ends, slurm_end_in
from launch.slurm.rank_main import outcome_file
from launch.slurm.supervise import unseen_end
from pretrain.exit_codes import ExitCode
from pretrain.run.outcome_record import VARIABLE, record_outcome
from tests.support.pestering import run_pestered
from tests.support.runs import ROOT, environment
from tests.support.slurm import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_job_that_has_said_its_last_word_is_not_killed_by_a_signal_while_its_process_ends(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    code, said = run_pestered([sys.executable, "-m", "launch.slurm.supervise"], by=number)
    assert said.startswith("pretrain: error: this runs inside a Slurm job")
    assert code == 2


PROGRAM = """
import sys, time
from pathlib import Path
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
from launch.slurm.job_signals import Signals
signals, names = Signals(), []
print("up", flush=True)
while len(names) < 3:
    if (number := signals._next()) is not None:
        names.append(number.name)
print(*names, flush=True)
sys.exit(143)
"""
"""A supervisor that takes its time to start; whatever exit code it has is the script's."""


def test_the_batch_script_keeps_signals_until_its_supervisor_listens(tmp_path: Path) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go-on"
    command = shlex.join([sys.executable, "-c", PROGRAM, str(started), str(go_on)])
    script = f"{LISTEN}set -euo pipefail\n{run(command)}"
    with subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        wait_until(started.exists, 60, lambda: "the start")
        shell.send_signal(signal.SIGUSR1)
        shell.send_signal(signal.SIGTERM)
        go_on.touch()
        assert shell.stdout.readline() == b"up\n"
        shell.send_signal(signal.SIGHUP)
        assert sorted(shell.stdout.readline().split()) == [b"SIGHUP", b"SIGTERM", b"SIGUSR1"]
        assert shell.wait(60) == 143


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("slurmstepd: error: *** JOB 7 ON a CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "preemption"),
        ("slurmstepd: error: *** JOB 7 ON a CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE ***", "node failure"),
        ("slurmstepd: error: *** JOB 7 ON a CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", "time limit"),
        ("slurmstepd: error: *** JOB 7 ON a CANCELLED AT 2026-01-01T00:00:00 ***", "cancelled"),
    ],
)
def test_only_what_slurm_queues_again_is_said_to_be(line: str, why: str) -> None:
    lines = ["== attempt 1 from step 0", line, "== job 7 on 1 node(s)"]
    assert slurm_end_in(lines) == f"Slurm ended the job ({why})"
    assert slurm_end_in([line, "== attempt 2 from step 0", "step 1"]) is None
    again = after_slurm_ends(f"Slurm ended the job ({why})")
    assert again.startswith("Slurm queues it again") == (why in ("preemption", "node failure"))


def test_the_end_of_an_attempt_that_no_supervisor_saw(tmp_path: Path) -> None:
    preempted = "Slurm ended the job (preemption)"
    assert unseen_end(tmp_path, None).outcome == "lost"
    assert unseen_end(tmp_path, "Slurm ended the job (node failure)").outcome == "lost"
    assert unseen_end(tmp_path, preempted).outcome == "interrupted"
    record_outcome(ExitCode.STOPPED, step=9, environment={VARIABLE: str(outcome_file(tmp_path))})
    for why in (preempted, None):
        assert (unseen_end(tmp_path, why).outcome, unseen_end(tmp_path, why).exit_code) == ("stopped", 75)

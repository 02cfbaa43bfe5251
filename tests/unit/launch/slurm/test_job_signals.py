"""The batch process of a job keeps its exit code, whatever Slurm sends while it ends."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm import job_signals
from launch.slurm.attempt import unseen_outcome
from launch.slurm.batch_shell import LISTEN, run
from launch.slurm.job_signals import job_end_since, log_bytes, what_follows
from launch.slurm.slurm_messages import EndCause, JobEnd, job_end_in
from pretrain.exit_codes import ExitCode
from tests.support.outcomes import end_of, write
from tests.support.pestering import run_pestered
from tests.support.runs import ROOT, environment
from tests.support.slurm import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_supervisor_exits_does_not_kill_it(
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


def test_the_batch_script_keeps_signals_for_the_supervisor(tmp_path: Path) -> None:
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
    end = job_end_in(["step 1", line, "step 2"])
    assert end is not None and str(end) == f"Slurm ended the job ({why})" and end.cause == why
    assert what_follows(end).startswith("Slurm queues it again") == (why in ("preemption", "node failure"))


def test_an_end_in_the_log_counts_only_for_its_own_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "job.log"
    monkeypatch.setattr(job_signals, "_own_log", lambda: log)
    end = "slurmstepd: error: *** JOB 7 ON a CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***\n"
    log.write_text(end)
    start = log_bytes()
    with log.open("a") as file:
        file.write("step 1\n")
    assert job_end_since(start) is None and job_end_since(0) == JobEnd(EndCause.PREEMPTION, "preemption")
    with log.open("a") as file:
        file.write(end)
    assert job_end_since(start) == JobEnd(EndCause.PREEMPTION, "preemption")


def test_the_outcome_of_an_attempt_that_no_supervisor_saw(tmp_path: Path) -> None:
    preempted, node_failed = JobEnd(EndCause.PREEMPTION), JobEnd(EndCause.NODE_FAILURE)
    assert unseen_outcome(tmp_path, None).outcome == "lost"
    assert unseen_outcome(tmp_path, node_failed).outcome == "lost"
    assert unseen_outcome(tmp_path, preempted).outcome == "interrupted"
    write(tmp_path, end_of("stopped"))
    for end in (preempted, None):
        ending = unseen_outcome(tmp_path, end)
        assert (ending.outcome, ending.exit_code) == ("stopped", ExitCode.STOPPED)

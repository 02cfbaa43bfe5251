"""The batch process of a job keeps its exit code, whatever Slurm sends while it ends."""

import signal
import sys

import pytest

from tests.support.pestering import run_pestered


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_job_that_has_said_its_last_word_is_not_killed_by_a_signal_while_its_process_ends(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    code, said = run_pestered([sys.executable, "-m", "launch.supervise"], by=number)
    assert said.startswith("pretrain: error: this runs inside a Slurm job")
    assert code == 2

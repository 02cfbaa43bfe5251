"""One exit code for each meaning: the program ends with it, and supervision takes it for what it means."""

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pretrain.commands.prepare
from data_pipeline.errors import DataError, NoSpace, Unreachable
from data_pipeline.remote.transfer import Attempts
from launch.slurm.outcome import AttemptFacts, attempt_outcome
from launch.slurm.slurm_messages import TaskFailure
from pretrain.cli import main
from pretrain.config.errors import ConfigError, RunError, RunInUse, RunRefused, TrainingDiverged
from pretrain.distributed.watchdog.reported import RankFailed
from pretrain.exit_codes import ExitCode, exit_code_of, outcome_of
from pretrain.outcome.record import VARIABLE, read_record
from pretrain.run.lock import hold_run_folder
from tests.support.corpus import cache_config
from tests.support.outcomes import report
from tests.support.runs import ROOT, environment

SCRIPTS = [path.relative_to(ROOT) for folder in ("launch", "slurm") for path in (ROOT / folder).glob("*.sh")]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["wrong"]), ExitCode.MISTAKE),
        (DataError("wrong"), ExitCode.MISTAKE),
        (NoSpace("full"), ExitCode.REFUSED),
        (Unreachable("no answer"), ExitCode.REFUSED),
        (RunRefused("full"), ExitCode.REFUSED),
        (OSError(errno.ENOSPC, "full"), ExitCode.REFUSED),
        (RunInUse("held"), ExitCode.IN_USE),
        (TrainingDiverged("nan"), ExitCode.DIVERGED),
        (RankFailed("rank 1", report()), ExitCode.FAILED),
        (ValueError("a bug"), ExitCode.FAILED),
        (KeyboardInterrupt(), ExitCode.FAILED),
    ],
)
def test_the_command_ends_with_the_code_of_its_error(
    error: BaseException, code: ExitCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(pretrain.commands.prepare, "prepare", fail)
    monkeypatch.setattr("pretrain.cli.drop_output", lambda: None)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        main(["prepare"])
    assert end.value.code == code


def test_the_step_that_diverged_is_in_the_record_for_supervisors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise TrainingDiverged("nan", step=12)

    monkeypatch.setenv(VARIABLE, str(tmp_path / "outcome.json"))
    monkeypatch.setattr(pretrain.commands.prepare, "prepare", fail)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        main(["prepare"])
    found = read_record(tmp_path / "outcome.json")
    assert found is not None and found.failure is not None
    assert (found.exit_code, found.failure.step) == (ExitCode.DIVERGED, 12)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, ExitCode.REFUSED), (errno.EACCES, ExitCode.MISTAKE)])
def test_a_run_folder_is_refused_by_the_system_or_wrong(
    number: int, code: ExitCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(RunError, match="cannot be written") as raised:
        hold_run_folder(tmp_path / "run").__enter__()
    assert isinstance(raised.value, RunRefused) == (code == ExitCode.REFUSED)


def test_an_unresponsive_server_is_not_the_users_mistake(tmp_path: Path) -> None:
    attempts = Attempts("http://host/file", cache_config(tmp_path, retries=0), threading.Event())
    with pytest.raises(Unreachable, match="tried 1 times"):
        attempts.failed("no answer", "try later")


@pytest.mark.parametrize("code", ExitCode)
def test_supervision_maps_every_code(code: ExitCode, tmp_path: Path) -> None:
    (tmp_path / "a-rank-00000.log").write_text("step 1/9\n")
    # A rank that stopped and saved ends its task with 0, so that srun ends no other.
    of_srun = 0 if code == ExitCode.STOPPED else code
    failures = (TaskFailure("a", f"Exited with exit code {code}", 0.0, 0),) if of_srun else ()
    ending = attempt_outcome(AttemptFacts(tmp_path, exit_code=of_srun, rank_0=code, failures=failures))
    assert (ending.outcome, ending.exit_code) == (code.outcome, code)


def test_only_a_users_mistake_and_the_end_of_a_run_are_final() -> None:
    assert {code for code in ExitCode if outcome_of(code) in ("finished", "mistake")} == {
        ExitCode.DONE,
        ExitCode.MISTAKE,
    }
    assert outcome_of(exit_code_of(-9)) == "failed"


def test_each_code_has_one_meaning_and_is_not_a_signal() -> None:
    assert len({code.meaning for code in ExitCode}) == len(ExitCode)
    assert all(code < 128 for code in ExitCode if code != ExitCode.NOT_READ)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_scripts_end_with_codes_of_the_table(script: Path) -> None:
    codes = re.findall(r"\bexit (\d+)", (ROOT / script).read_text())
    assert {int(code) for code in codes} <= set(ExitCode)


def test_the_table_needs_no_package() -> None:
    code = "import sys, pretrain.exit_codes; sys.exit('yaml' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-S", "-c", code], env=environment(), cwd=ROOT).returncode == 0

"""The record of how an attempt ended: what is written is read, and the first writer wins."""

import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.exit_codes import ExitCode
from pretrain.outcome.failure import FailureKind
from pretrain.outcome.record import VARIABLE, OutcomeRecord, failure, read_record, success, write_for_launcher
from tests.support.outcomes import report, write
from tests.support.runs import ROOT, environment


@pytest.mark.parametrize("kind", FailureKind)
def test_what_is_written_is_read(tmp_path: Path, kind: FailureKind) -> None:
    written = write(tmp_path, failure(report(kind)))
    assert read_record(tmp_path / "outcome.json") == written and written.exit_code == kind.exit_code


def test_the_first_writer_wins_and_leaves_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    first = write(tmp_path, failure(report(FailureKind.SYSTEM_REFUSED, "no\n  space")))
    write(tmp_path, success(ExitCode.STOPPED, step=5))
    found = read_record(tmp_path / "outcome.json")
    assert found == first and found is not None
    assert (found.reporter, found.message, found.steps_made) == (3, "no space", None)
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]


def test_without_a_launcher_or_a_folder_nothing_is_written(tmp_path: Path) -> None:
    write_for_launcher(success(ExitCode.DONE), {})
    write_for_launcher(success(ExitCode.DONE), {VARIABLE: str(tmp_path / "nowhere" / "outcome.json")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"exit_code": 75}', '{"exit_code": 999}'])
def test_a_damaged_record_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "outcome.json").write_text(text)
    assert read_record(tmp_path / "outcome.json") is None


def test_a_record_with_unknown_fields_is_refused(tmp_path: Path) -> None:
    record = success(ExitCode.DONE).to_dict() | {"new": 1}
    with pytest.raises(TypeError):
        OutcomeRecord.from_dict(record)


def test_records_and_attempts_need_no_package() -> None:
    """A login node may have only Python."""
    code = "import sys, pretrain.run.attempts; sys.exit(any(name in sys.modules for name in ('yaml', 'torch')))"
    assert subprocess.run([sys.executable, "-S", "-c", code], env=environment(), cwd=ROOT).returncode == 0

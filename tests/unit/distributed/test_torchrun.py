"""The reason of a failure is the last thing that torchrun prints, and is lost nowhere else."""

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pretrain.cli import main
from pretrain.distributed import torchrun
from pretrain.exit_codes import ExitCode

MISTAKE = ["pretrain: error: trian: unknown command", "  hint: did you mean train?"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that torchrun names to a rank."""
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    return path


def mistake(capsys: pytest.CaptureFixture[str]) -> str:
    """The output of a mistake."""
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == ExitCode.MISTAKE
    return capsys.readouterr().err


def test_torchrun_ends_with_the_message_which_is_printed_once(file, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torchrun, "_is_child_of_launcher", lambda: True)
    assert MISTAKE[0] not in mistake(capsys)
    table = str(ChildFailedError("pretrain", {0: ProcessFailure(0, 1, ExitCode.MISTAKE, str(file))}))
    *_, message, hint, rule = table.splitlines()
    assert message.endswith(MISTAKE[0]) and hint.endswith(MISTAKE[1]) and set(rule) == {"="}


def test_a_program_that_a_rank_starts_prints_for_itself(file, capsys) -> None:
    assert mistake(capsys).splitlines()[-2:] == MISTAKE and not file.exists()


def test_a_file_that_cannot_be_written_keeps_the_message(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torchrun, "_is_child_of_launcher", lambda: True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    assert mistake(capsys).splitlines()[-2:] == MISTAKE

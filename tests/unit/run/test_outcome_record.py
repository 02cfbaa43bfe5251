"""The record of an end, and the bounded time for what follows it."""

import threading
from pathlib import Path

import pytest

from pretrain.exit_codes import ExitCode
from pretrain.run.outcome_record import VARIABLE, read_outcome, record_outcome
from pretrain.tracking.close_sinks import close_within, is_closing


def test_the_first_writer_wins_and_nothing_is_left_beside_the_record(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    environment = {VARIABLE: str(path), "RANK": "3"}
    record_outcome(ExitCode.REFUSED, message="no\n  space", environment=environment)
    record_outcome(ExitCode.STOPPED, step=5, environment=environment)
    found = read_outcome(path)
    assert found is not None and (found.exit_code, found.rank, found.step) == (ExitCode.REFUSED, 3, None)
    assert found.message == "no space" and found.steps_made is None
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_supervisor_or_a_place_nothing_is_written(tmp_path: Path) -> None:
    record_outcome(ExitCode.DONE, environment={})
    record_outcome(ExitCode.DONE, environment={VARIABLE: str(tmp_path / "nowhere" / "outcome.json")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"exit_code": 75}', '{"exit_code": 999}'])
def test_a_damaged_record_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "outcome.json").write_text(text)
    assert read_outcome(tmp_path / "outcome.json") is None


def test_a_sink_that_does_not_close_is_named_and_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    answer, closed = threading.Event(), threading.Event()
    try:
        close_within(0.2, {"wandb": lambda: answer.wait() and None, "report": closed.set})
        assert closed.is_set() and is_closing()
        assert "wandb: not closed within 0 s" in caplog.text and "report" not in caplog.text
    finally:
        answer.set()


def test_sinks_that_end_in_time_are_waited_for_and_no_longer(caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()
    close_within(60, {"report": closed.set})
    assert closed.is_set() and not caplog.text

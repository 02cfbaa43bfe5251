"""The bounded time in which sinks are closed."""

import threading

import pytest

from pretrain.tracking.close_sinks import close_within, is_closing


def test_a_sink_that_does_not_close_is_named_and_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    answer, closed = threading.Event(), threading.Event()
    try:
        close_within(0.2, {"wandb": lambda: answer.wait() and None, "report": closed.set})
        assert closed.is_set() and is_closing()
        assert "wandb: not closed within 0 s" in caplog.text and "report" not in caplog.text
    finally:
        answer.set()


def test_sinks_that_close_in_time_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()
    close_within(60, {"report": closed.set})
    assert closed.is_set() and not caplog.text

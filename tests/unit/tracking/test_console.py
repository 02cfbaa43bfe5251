import logging
import os
import pty

import pytest

from pretrain.tracking.console import LiveConsole, PlainConsole, console_sink, duration, short_number

TRAIN = {"loss": 5.4321, "grad_norm": 1.25, "lr": 3e-4, "tokens_per_second": 12345.6, "mfu_6n_6lhs": 0.432}
VALIDATION = {"loss": 4.5, "perplexity": 90.02, "bits_per_byte": 1.83, "samples": 256, "seconds": 2.1}


class Clock:
    """A clock that only the test moves."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def terminal():
    """A stream on a pseudo terminal, and a function that reads what has been shown there."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as stream:

        def shown():
            stream.flush()
            os.set_blocking(reader, False)
            text = b""
            while True:
                try:
                    text += os.read(reader, 65536)
                except BlockingIOError:
                    return text.decode().replace("\r\n", "\n")

        yield stream, shown
    os.close(reader)


def screen(text):
    """The lines on a terminal after `text`, which may clear and redraw its last line."""
    return [line.rpartition("\r\x1b[K")[2] for line in text.split("\n")]


def test_a_file_gets_plain_lines(tmp_path, caplog):
    with (tmp_path / "log").open("w") as stream, caplog.at_level(logging.INFO):
        sink = console_sink(100, stream=stream)
        assert isinstance(sink, PlainConsole)
        sink.log("train", 10, TRAIN | {"seconds_step": 2.0})
        sink.log("validation", 10, VALIDATION)
        sink.close("finished")
    train, validation = (record.getMessage() for record in caplog.records)
    assert train == "step 10/100  loss 5.4321  grad norm 1.25  lr 3.000e-04  12.3k tokens/s  MFU 43.2%  ETA 3m00s"
    expected = "loss 4.5000, perplexity 90.02, 1.8300 bits per byte (256 samples, 2.1 s)"
    assert validation == f"validation at step 10: {expected}"


def test_a_dumb_terminal_gets_plain_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(console_sink(100, stream=terminal[0]), PlainConsole)


def test_a_terminal_shows_one_live_line_below_the_validations(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, shown = terminal
    sink = console_sink(100, stream=stream)
    assert isinstance(sink, LiveConsole)
    for step in range(1, 51):
        sink.log("train", step, TRAIN | {"loss": 6 - step / 50})
        if step % 25 == 0:
            sink.log("validation", step, VALIDATION)
    sink.close("finished")
    first, second, live, after = screen(shown())
    assert first.startswith("validation at step 25: loss 4.5000")
    assert second.startswith("validation at step 50: loss 4.5000")
    assert live.startswith("step 50/100 (50%)  loss 5.0000  12.3k tokens/s  ETA ")
    assert after == ""


def test_the_live_line_never_wraps(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream, shown = terminal
    sink = LiveConsole(100, stream)
    sink.log("train", 1, TRAIN)
    assert len(screen(shown())[-1]) == 29


def test_log_lines_are_printed_above_the_live_line(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream, shown = terminal
    logger = logging.getLogger("pretrain.tracking")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        sink = LiveConsole(100, stream)
        sink.log("train", 1, TRAIN)
        logger.warning("saved a checkpoint")
        sink.log("train", 2, TRAIN)
        assert [line[:18] for line in screen(shown())] == ["saved a checkpoint", "step 2/100 (2%)  l"]
        sink.close("finished")
        assert handler.stream is stream
    finally:
        logger.removeHandler(handler)


def test_time_to_go_follows_the_pace_since_the_first_record(caplog):
    clock = Clock()
    sink = PlainConsole(1000, now=clock)
    with caplog.at_level(logging.INFO):
        sink.log("train", 500, {"seconds_step": 1.0})
        clock.time = 20.0  # two seconds a step: validation and saving count too
        sink.log("train", 510, {"seconds_step": 1.0})
    assert [record.getMessage().split("ETA ")[1] for record in caplog.records] == ["8m20s", "16m20s"]


def test_the_final_validation_logs_start_and_progress(caplog):
    clock = Clock()
    sink = PlainConsole(20, final_samples=100, now=clock)
    with caplog.at_level(logging.INFO):
        sink.log("train", 20, {})
        for done in range(0, 101, 10):
            sink.validating(done, 100)
            clock.time += 2.0
    lines = [record.getMessage() for record in caplog.records[1:]]
    assert lines == [
        "final validation: 100 samples",
        "final validation: 30 of 100 samples  5 samples/s  ETA 14s",
        "final validation: 60 of 100 samples  5 samples/s  ETA 8s",
        "final validation: 90 of 100 samples  5 samples/s  ETA 2s",
    ]


def test_a_quick_validation_at_the_interval_logs_its_result_only(caplog):
    clock = Clock()
    sink = PlainConsole(20, final_samples=100, now=clock)
    with caplog.at_level(logging.INFO):
        sink.log("train", 10, {})
        for done in range(0, 101, 10):
            sink.validating(done, 100)
            clock.time += 0.1
    assert len(caplog.records) == 1


def test_a_terminal_shows_a_validation_in_place_of_the_step(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream, shown = terminal
    sink = LiveConsole(100, stream)
    sink.log("train", 50, TRAIN)
    sink.validating(0, 256)
    sink.validating(128, 256)
    assert screen(shown())[-1].startswith("validation: 128 of 256 samples")
    sink.log("validation", 50, VALIDATION)
    validation, live = screen(shown())
    assert validation.startswith("validation at step 50") and live.startswith("step 50/100")


@pytest.mark.parametrize("validated", [False, True])
def test_the_time_to_go_holds_the_final_validation(caplog, validated):
    sink = PlainConsole(20, final_samples=1000, now=Clock())
    with caplog.at_level(logging.INFO):
        if validated:
            sink.log("validation", 10, {"samples": 100, "seconds": 3.0})
        # Before the first validation: a third of 0.9 seconds for each of 10 samples.
        sink.log("train", 19, {"seconds_step": 1.0, "seconds_forward_backward": 0.9, "batch_samples": 10})
    assert caplog.records[-1].getMessage().endswith("ETA 31s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m00s"), (192, "3m12s"), (3600, "1h00m"), (183600, "2d03h"), (float("nan"), "?"), (-1, "?")],
)
def test_durations_read_in_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (999.6, "1k"), (12345, "12.3k"), (1.5e9, "1.5B"), (530e9, "530B")]
)
def test_numbers_read_in_three_digits(value, text):
    assert short_number(value) == text

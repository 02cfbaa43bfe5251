import json
import logging
import math
import resource
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.run.outcome import record_start
from pretrain.tracking.metrics_file import METRICS_FILE, JsonlSink, read_metrics, records_of_all_attempts


def log_steps(run_dir, resume_step, steps):
    sink = JsonlSink(run_dir, resume_step)
    for step in steps:
        sink.log("train", step, {"loss": step / 10})
    sink.close("finished")


def steps_in(run_dir):
    return [record["step"] for record in read_metrics(run_dir)]


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_each_line_is_readable_as_soon_as_it_is_logged(tmp_path):
    sink = JsonlSink(tmp_path, resume_step=0)
    sink.log("train", 1, {"loss": 2.5, "batch_hash": "00ff00ff00ff00ff"})
    (record,) = read_metrics(tmp_path)
    assert record.pop("time") > 0
    assert record == {"kind": "train", "step": 1, "loss": 2.5, "batch_hash": "00ff00ff00ff00ff"}


@pytest.mark.parametrize("resume_step", [10, 13, 20])
def test_resume_leaves_no_step_twice(tmp_path, resume_step):
    log_steps(tmp_path, 0, range(1, 21))
    log_steps(tmp_path, resume_step, range(resume_step + 1, 25))
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).open()] == list(range(1, 25))


def test_a_start_from_step_zero_has_a_file_of_its_own(tmp_path):
    log_steps(tmp_path, 0, [0, 1, 2])
    log_steps(tmp_path, 0, [0, 1])
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).open()] == [0, 1]


@settings(max_examples=30)  # each writes through to the disk
@given(starts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 20)), max_size=6))
def test_no_line_is_ever_lost(tmp_path_factory, starts):
    """Each start resumes at some step, logs some, and may tear its last line."""
    run_dir, written = tmp_path_factory.mktemp("run"), []
    for number, (resume_step, count, torn) in enumerate(starts):
        sink = JsonlSink(run_dir, resume_step)
        for step in range(resume_step + 1, resume_step + 1 + count):
            sink.log("train", step, {"start": number})
        sink.close("killed")
        path = run_dir / METRICS_FILE
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - torn] if count else content)
        written += [line for line in path.read_bytes().splitlines() if f'"start": {number}'.encode() in line]
    kept = [line for path in run_dir.iterdir() for line in path.read_bytes().splitlines()]
    assert not [line for line in written if line not in kept]


def test_a_torn_last_line_is_dropped_on_resume(tmp_path):
    log_steps(tmp_path, 0, [1, 2, 3])
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-5])
    log_steps(tmp_path, 3, [3, 4])
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert all(json.loads(line) for line in path.open())


def test_a_record_without_newline_is_not_joined_to_the_next(tmp_path):
    log_steps(tmp_path, 0, [1, 2])
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    log_steps(tmp_path, 2, [3])
    assert steps_in(tmp_path) == [1, 3]


def test_a_file_without_later_steps_is_left_as_it_is(tmp_path):
    log_steps(tmp_path, 0, [1, 2, 3])
    before = (tmp_path / METRICS_FILE).read_bytes()
    JsonlSink(tmp_path, 3).close("stopped")
    assert (tmp_path / METRICS_FILE).read_bytes() == before


def start(run_dir, resume_step, steps, batch="a"):
    """An attempt that records these steps."""
    record_start(run_dir, resume_step)
    sink = JsonlSink(run_dir, resume_step)
    for step in steps:
        sink.log("train", step, {"batch_hash": batch, "lr": 0.1})
        if step % 5 == 0:
            sink.log("length", step, {"cut_tokens": 100 * step})
    sink.close("killed")


def attempts_say(run_dir):
    return sorted((record["step"], record["kind"]) for record in records_of_all_attempts(run_dir))


def test_a_short_attempt_hides_no_earlier_steps(tmp_path):
    start(tmp_path, 0, range(1, 13))
    everything = attempts_say(tmp_path)
    for again in ([], [5, 6], [5]):
        start(tmp_path, 4, again)
        assert steps_in(tmp_path)[-1] == max([4, *again])
        assert attempts_say(tmp_path) == everything
    assert everything == sorted([*((step, "train") for step in range(1, 13)), (5, "length"), (10, "length")])


def test_steps_after_a_different_batch_are_dropped(tmp_path):
    start(tmp_path, 0, range(1, 13))
    start(tmp_path, 4, [5, 6], batch="b")
    start(tmp_path, 4, [5], batch="b")
    assert [step for step, kind in attempts_say(tmp_path) if kind == "train"] == [1, 2, 3, 4, 5, 6]


def test_what_was_recorded_before_a_restart_does_not_count(tmp_path):
    start(tmp_path, 0, range(1, 13))
    time.sleep(0.01)  # the time of a record says which start it belongs to
    start(tmp_path, 0, [1, 2])
    assert [step for step, kind in attempts_say(tmp_path)] == [1, 2]


@given(values=st.dictionaries(st.text(), st.floats(allow_nan=True) | st.integers(-(2**53), 2**53) | st.text()))
def test_any_value_gives_one_line_of_strict_json(tmp_path_factory, values):
    values = {name: value for name, value in values.items() if name not in ("kind", "step", "time")}
    run_dir = tmp_path_factory.mktemp("run")
    sink = JsonlSink(run_dir, 0)
    sink.log("train", 1, values)
    sink.close("finished")
    (line,) = (run_dir / METRICS_FILE).read_bytes().splitlines()
    stored = json.loads(line, parse_constant=refuse_constant)
    for name, value in values.items():
        finite = isinstance(value, str) or math.isfinite(value)
        assert stored[name] == (value if finite else str(value))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_are_read_back(tmp_path, value):
    sink = JsonlSink(tmp_path, 0)
    sink.log("train", 1, {"loss": value})
    (record,) = read_metrics(tmp_path)
    assert record["loss"] == pytest.approx(value, nan_ok=True)


def test_lines_wait_while_the_disk_is_full(tmp_path, caplog):
    """A limit on the file size acts like a full disk: the kernel writes what fits and refuses the rest."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sink = JsonlSink(tmp_path, 0)
    try:
        sink.log("train", 1, {"loss": 1.0})
        size = (tmp_path / METRICS_FILE).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, before[1]))
        with caplog.at_level(logging.WARNING):
            sink.log("train", 2, {"loss": 2.0})
            sink.log("train", 3, {"loss": 3.0})
        assert (tmp_path / METRICS_FILE).stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(caplog.records) == 1 and "metrics.jsonl" in caplog.text
    sink.log("train", 4, {"loss": 4.0})
    assert steps_in(tmp_path) == [1, 2, 3, 4]

"""Figures of tasks and domains: the console line, the table and the curves of the report."""

import json
import logging
import math

from pretrain.tracking.console import console_sink
from pretrain.tracking.interactive import run_charts
from pretrain.tracking.metrics_file import JsonlSink
from pretrain.tracking.report import write_report
from pretrain.tracking.task_values import task_curves, task_rows, task_values, tasks_line

RECORD = {
    "kind": "validation",
    "step": 10,
    "loss": 4.5,
    "task/next_line/accuracy": 0.455,
    "task/next_line/accuracy_error": 0.0352,
    "task/next_line/accuracy_unconditional": 0.6,
    "task/next_line/bits_per_byte": 2.1041,
    "task/next_line/bits_per_byte_error": 0.05,
    "seconds_tasks": 0.41,
    "domain/news/uk/bits_per_byte": 1.93,
    "seconds_domains": 0.2,
}


def test_a_key_holds_kind_name_and_figure():
    found = [(each.kind, each.name, each.figure, each.value) for each in task_values(RECORD)]
    assert found == [
        ("task", "next_line", "accuracy", 0.455),
        ("task", "next_line", "accuracy_unconditional", 0.6),
        ("task", "next_line", "bits_per_byte", 2.1041),
        ("domain", "news/uk", "bits_per_byte", 1.93),
    ]
    errors = [each.error for each in task_values(RECORD)]
    assert errors[0] == 0.0352 and math.isnan(errors[1]) and math.isnan(errors[3])


def test_a_line_shows_accuracy_bits_and_seconds():
    of_task = "next_line accuracy 0.455 ± 0.035, unconditional 0.600, 2.104 ± 0.050 bits per byte"
    assert tasks_line(RECORD) == f"{of_task}; news/uk 1.930 bits per byte (0.6 s)"
    assert tasks_line({"task/a/unscored": 3}) == "a 3.000 scores are NaN or infinite"
    assert tasks_line({"loss": 4.5, "loss/a": 3.0}) == ""


def test_the_console_shows_a_second_line(tmp_path, caplog):
    with (tmp_path / "log").open("w") as stream, caplog.at_level(logging.INFO):
        console_sink(100, stream=stream).log("validation", 10, RECORD)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("validation at step 10: loss 4.5000")
    assert second.startswith("tasks at step 10: next_line accuracy 0.455")


def test_curves_hold_each_validation():
    records = [RECORD, RECORD | {"step": 20, "task/next_line/accuracy": 0.5}]
    assert task_curves(records, "accuracy") == {"next_line": [(10, 0.455), (20, 0.5)]}
    assert set(task_curves(records, "bits_per_byte")) == {"next_line", "news/uk"}


def test_the_report_has_a_table_and_charts(tmp_path):
    sink = JsonlSink(tmp_path, 0)
    for step in (10, 20):
        sink.log("validation", step, {key: value for key, value in RECORD.items() if key not in ("kind", "step")})
    sink.close("finished")
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Tasks and domains in the last validation" in page
    for text in ("next_line", "accuracy_unconditional", "2.1041", "0.0352", "news/uk"):
        assert text in page, text
    charts = run_charts([json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()])
    assert charts is not None
    assert "Accuracy of tasks" in charts.content and "Bits per byte of tasks and domains" in charts.content
    assert task_rows(RECORD)[1] == ["next_line", "accuracy_unconditional", "0.6000", ""]

"""report.html: a run on one page with its curves, made from the files in its folder."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.html_page import data_url, figure_text, render_page
from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.records import flatten
from pretrain.run.outcome import TRAINING, RunOutcome, read_outcome
from pretrain.tracking.console import duration, short_number
from pretrain.tracking.curves import draw_curves
from pretrain.tracking.interactive import TARGET, run_charts
from pretrain.tracking.metrics_file import Kind, Values, read_metrics
from pretrain.tracking.provenance import DESCRIPTION_FILE
from pretrain.tracking.task_values import task_rows

CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.html"
SAMPLE_FILE = "sample.txt"
LONGEST_SAMPLE = 20_000
"""Characters of sample.txt that the page shows."""

SHARE_OF_TIME, SECONDS_BETWEEN = 0.01, 60.0
"""The shortest time between two reports, and the largest share of a run's time that reports may take."""


class ReportSink:
    """Writes the report after validations, now and then between them, and at the end, in a small share of the time."""

    def __init__(self, run_dir: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._run_dir = run_dir
        self._now = now
        self._written = now()
        self._seconds = 0.0
        """How long the last report took to write."""

    def log(self, kind: Kind, step: int, values: Values) -> None:
        age = self._now() - self._written
        if age * SHARE_OF_TIME >= self._seconds and (kind == "validation" or age >= SECONDS_BETWEEN):
            self._write()

    def close(self, outcome: str) -> None:
        self._write()

    def _write(self) -> None:
        began = self._now()
        write_report(self._run_dir)
        self._written = self._now()
        self._seconds = self._written - began


def write_report(run_dir: Path) -> None:
    """Write report.html and its PNG curves from the files in the folder; missing files leave gaps.

    The page holds its curves and the script that draws them, so that it can be sent as one file.
    """
    records = read_metrics(run_dir)
    config_path, description_path = run_dir / CONFIG_FILE, run_dir / DESCRIPTION_FILE
    config = config_path.read_text(encoding="utf-8") if config_path.exists() else ""
    description = json.loads(description_path.read_text(encoding="utf-8")) if description_path.exists() else {}
    name, outcome = _run_name(run_dir, config), read_outcome(run_dir)

    images = draw_curves(name, records)
    for file, image in images.items():
        write_durably(run_dir / file, image)
    validations = [record for record in records if record["kind"] == "validation"]
    page = render_page(
        _PAGE,
        name=name,
        outcome=outcome,
        is_training=outcome is not None and outcome.state == TRAINING,
        times=list(_times(outcome, records)) if outcome else [],
        written=_time_text(time.time()),
        tiles=list(_tiles(records, description)),
        target=TARGET,
        charts=run_charts(records),
        images=[(file, data_url(image)) for file, image in images.items()],
        sample=_sample(run_dir),
        validations=[_validation_row(record) for record in validations[-10:]],
        tasks=task_rows(validations[-1]) if validations else [],
        details=[(key, figure_text(value)) for key, value in flatten(description).items()],
        config=config,
    )
    write_durably(run_dir / REPORT_FILE, page)


def _times(outcome: RunOutcome, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence with the start, end and length of the run."""
    yield f"started {_time_text(outcome.started)}"
    if outcome.resumed != outcome.started:
        yield f"resumed {_time_text(outcome.resumed)}"
    if outcome.ended is not None:
        yield f"ended {_time_text(outcome.ended)}"
        yield f"{duration(outcome.ended - outcome.started)} from start to end"
    elif records:
        yield f"last record {_time_text(records[-1]['time'])}"


def _time_text(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _sample(run_dir: Path) -> str:
    path = run_dir / SAMPLE_FILE
    return path.read_text(encoding="utf-8", errors="replace")[:LONGEST_SAMPLE] if path.exists() else ""


def _run_name(run_dir: Path, config: str) -> str:
    import yaml

    values = yaml.safe_load(config)
    try:
        return str(values["run"]["name"])
    except (TypeError, KeyError):
        return run_dir.resolve().name


def _tiles(records: Sequence[Mapping[str, Any]], description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The numbers at the top of the page, as (label, text)."""
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    parameters = description.get("parameters")
    total = parameters.get("total") if isinstance(parameters, Mapping) else parameters
    if isinstance(total, int):
        yield "parameters", short_number(total)
    if train:
        yield "steps", f"{train[-1]['step']:,}"
        if "tokens" in train[-1]:
            yield "tokens", short_number(train[-1]["tokens"])
        if train[-1].get("skipped_samples"):
            yield "samples of bad shards skipped", f"{train[-1]['skipped_samples']:,}"
    if train and isinstance(train[-1].get("loss"), float):
        yield "training loss", f"{train[-1]['loss']:.4f}"
    for key, label, form in (
        ("loss", "validation loss", "{:.4f}"),
        ("perplexity", "perplexity", "{:.2f}"),
        ("bits_per_byte", "bits per byte", "{:.4f}"),
    ):
        if validation and key in validation[-1]:
            yield label, form.format(validation[-1][key])
    speeds = sorted(record["tokens_per_second"] for record in train if "tokens_per_second" in record)
    if speeds:
        yield "tokens/s (median)", short_number(speeds[len(speeds) // 2])
    shares = sorted(record["mfu_6n_6lhs"] for record in train if "mfu_6n_6lhs" in record)
    if shares:
        yield "MFU (6N + 6Lhs)", f"{shares[len(shares) // 2]:.1%}"


def _validation_row(record: Mapping[str, Any]) -> list[str]:
    number = {key: float(record.get(key, math.nan)) for key in _VALIDATION_KEYS}
    return [
        f"{record['step']:,}",
        f"{number['loss']:.4f}",
        f"{number['perplexity']:.2f}",
        f"{number['bits_per_byte']:.4f}",
        f"{number['samples']:,.0f}",
        duration(number["seconds"]),
    ]


_VALIDATION_KEYS = ("loss", "perplexity", "bits_per_byte", "samples", "seconds")


_PAGE = """\
{% extends "frame.html" %}
{% import "parts.html" as parts %}
{% block title %}{{ name }}{% endblock %}
{% block head %}
{% if is_training %}
<noscript><meta http-equiv="refresh" content="60"></noscript>
<script>
  // Load the page again each minute while the run trains, unless the reader is at work in it.
  let touched = 0;
  for (const what of ["pointerdown", "wheel", "keydown"]) addEventListener(what, () => { touched = Date.now(); });
  setInterval(() => { if (Date.now() - touched > 60000) location.reload(); }, 60000);
</script>
{% endif %}
{% endblock %}
{% block body %}
<header>
<span class="quiet">training run</span>
<h1>{{ name }}{% if outcome %} <span class="state {{ outcome.state }}">{{ outcome.state }}</span>{% endif %}</h1>
{% if outcome and outcome.reason %}
<p class="quiet">{{ outcome.reason }}</p>
{% endif %}
<p class="quiet">{% for time in times %}{{ time }} &middot; {% endfor %}page written {{ written }}</p>
</header>
{{ parts.tiles(tiles) }}
<section><h2>Curves</h2>
<div id="{{ target }}">{{ "" if charts else "no records yet" }}</div>
<noscript>
{% for file, url in images %}
<img alt="{{ file }}" src="{{ url }}">
{% endfor %}
</noscript>
</section>
{% if sample %}
<section><h2>Sample of its text</h2><pre class="text">{{ sample }}</pre></section>
{% endif %}
{% if validations %}
<section><h2>Last validations</h2>
{{ parts.table(["step", "loss", "perplexity", "bits per byte", "samples", "time"], validations) }}
</section>
{% endif %}
{% if tasks %}
<section><h2>Tasks and domains in the last validation</h2>
{{ parts.table(["name", "figure", "value", "standard error"], tasks) }}
</section>
{% endif %}
{% if details %}
<section><details><summary>What was run</summary>
{{ parts.pairs(details) }}
</details></section>
{% endif %}
{% if config %}
<section><details><summary>Configuration</summary><pre>{{ config }}</pre></details></section>
{% endif %}
{% if charts %}
{{ parts.charts(charts) }}
{% endif %}
{% endblock %}
"""

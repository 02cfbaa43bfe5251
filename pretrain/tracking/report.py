"""report.html and its curves: a run on one page, made from what its folder holds."""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_durably
from pretrain.config.load import flatten
from pretrain.tracking.console import duration, short_number
from pretrain.tracking.curves import draw_curves
from pretrain.tracking.metrics_file import Kind, Values, read_metrics
from pretrain.tracking.provenance import DESCRIPTION_FILE

CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.html"
SAMPLE_FILE = "sample.txt"


class ReportSink:
    """Makes the report anew after each validation and at the end."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def log(self, kind: Kind, step: int, values: Values) -> None:
        if kind == "validation":
            write_report(self._run_dir)

    def close(self, outcome: str) -> None:
        write_report(self._run_dir)


def write_report(run_dir: Path) -> None:
    """Write report.html and its PNG curves from metrics.jsonl, config.yaml and description.json, as far as they exist.

    The page holds its images, so that it can be sent as one file.
    """
    import jinja2

    records = read_metrics(run_dir)
    config_path, description_path = run_dir / CONFIG_FILE, run_dir / DESCRIPTION_FILE
    config = config_path.read_text(encoding="utf-8") if config_path.exists() else ""
    description = json.loads(description_path.read_text(encoding="utf-8")) if description_path.exists() else {}

    images = draw_curves(records)
    for name, image in images.items():
        write_durably(run_dir / name, image)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    html = page.render(
        name=_run_name(run_dir, config),
        tiles=list(_tiles(records, description)),
        images={_TITLES[name]: base64.b64encode(image).decode() for name, image in images.items()},
        validations=[_validation_row(record) for record in records if record["kind"] == "validation"][-10:],
        details=[(key, _text(value)) for key, value in flatten(description).items()],
        config=config,
    )
    write_durably(run_dir / REPORT_FILE, html.encode())


_TITLES = {
    "loss.png": "Loss",
    "learning_rate.png": "Learning rate",
    "gradient_norm.png": "Gradient norm",
    "speed.png": "Speed and where the time of a step goes",
}


def _run_name(run_dir: Path, config: str) -> str:
    import yaml

    values = yaml.safe_load(config)
    try:
        return str(values["run"]["name"])
    except (TypeError, KeyError):
        return run_dir.resolve().name


def _tiles(records: Sequence[Mapping[str, Any]], description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures at the head of the page, as (label, text)."""
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


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #f6f7f9; margin: 0; }
  main { max-width: 1000px; margin: 0 auto; padding: 24px 16px 48px; }
  h1 { font-size: 26px; margin: 8px 0 20px; overflow-wrap: anywhere; }
  h2 { font-size: 17px; margin: 0 0 12px; }
  section { background: white; border: 1px solid #e5e7eb; border-radius: 10px; padding: 16px 20px; margin: 16px 0; }
  .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; }
  .tile { background: white; border: 1px solid #e5e7eb; border-radius: 10px; padding: 12px 16px; }
  .tile b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; }
  .tile span, th { color: #6b7280; font-size: 13px; font-weight: normal; }
  img { width: 100%; height: auto; display: block; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  td, th { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid #f0f1f3; overflow-wrap: anywhere;
           vertical-align: top; }
  pre { overflow-x: auto; font-size: 13px; margin: 0; }
  summary { cursor: pointer; font-weight: 600; }
</style>
</head>
<body><main>
<h1>{{ name }}</h1>
<div class="tiles">
{% for label, text in tiles %}
  <div class="tile"><b>{{ text }}</b><span>{{ label }}</span></div>
{% endfor %}
</div>
{% for title, image in images.items() %}
<section><h2>{{ title }}</h2><img alt="{{ title }}" src="data:image/png;base64,{{ image }}"></section>
{% endfor %}
{% if validations %}
<section><h2>Last validations</h2>
<table>
  <tr><th>step</th><th>loss</th><th>perplexity</th><th>bits per byte</th><th>samples</th><th>time</th></tr>
{% for row in validations %}
  <tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></section>
{% endif %}
{% if details %}
<section><h2>What was run</h2>
<table>
{% for key, value in details %}
  <tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></section>
{% endif %}
{% if config %}
<section><details><summary>Configuration</summary><pre>{{ config }}</pre></details></section>
{% endif %}
</main></body></html>
"""

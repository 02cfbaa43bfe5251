"""The report page of a ladder: its runs, the law that they give, what it predicts, and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.html_page import data_url, render_page
from data_pipeline.storage.atomic_write import write_durably
from pretrain.scaling.ladder.table import Row
from pretrain.scaling.ladder.targets import Prediction, prediction_lines
from pretrain.scaling.ladder.write_table import HEAD, table_row
from pretrain.tracking.console import short_number
from pretrain.tracking.interactive import TARGET, Charts

PAGE_FILE = "report.html"


@dataclass(frozen=True)
class Report:
    """The content of the page."""

    name: str
    rows: Sequence[Row]
    law: Sequence[str]
    """The fits as lines of text; if no law could be fitted, the reason."""
    targets: Sequence[Prediction] = ()
    images: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files by name."""
    charts: Charts | None = None
    """The same plots, to hover and zoom."""


def write_report(folder: Path, report: Report) -> list[Path]:
    """Write report.html, which holds its plots, and each plot as a PNG file; returns the paths of the PNG files."""
    for name, image in report.images.items():
        write_durably(folder / name, image)
    page = render_page(
        _PAGE,
        name=report.name,
        tiles=_tiles(report),
        header=HEAD,
        rows=[table_row(row) for row in report.rows],
        targets=prediction_lines(report.targets),
        law="\n".join(report.law),
        target=TARGET,
        charts=report.charts,
        images=[(name, data_url(image)) for name, image in report.images.items()],
    )
    write_durably(folder / PAGE_FILE, page)
    return [folder / name for name in report.images]


def _tiles(report: Report) -> list[tuple[str, str]]:
    finished = [row for row in report.rows if row.is_complete]
    tiles = [
        ("runs", f"{len(finished)} of {len(report.rows)} finished"),
        ("tokens trained on", short_number(sum(row.cell.trained_tokens for row in finished))),
        ("GPU-hours", f"{sum(row.gpu_hours for row in report.rows):.3g}"),
        ("restarts", str(sum(row.values["restarts"] for row in report.rows))),
    ]
    errors = [abs(each.error) for each in report.targets if each.error is not None]
    if errors:
        tiles.append(("largest error of a prediction", f"{max(errors):.2%}"))
    return tiles


_PAGE = """\
{% extends "frame.html" %}
{% import "parts.html" as parts %}
{% block title %}{{ name }}: scaling{% endblock %}
{% block body %}
<header><span class="quiet">scaling ladder</span><h1>{{ name }}</h1></header>
{{ parts.tiles(tiles) }}
{% if targets %}
<section><h2>Runs that were not in the fit</h2>
{% for line in targets %}
<p>{{ line }}</p>
{% endfor %}
</section>
{% endif %}
<section><h2>Law</h2><pre class="text">{{ law }}</pre></section>
{% if charts %}
<section><h2>Plots</h2>
<div id="{{ target }}"></div>
<noscript>
{% for file, url in images %}
<img alt="{{ file }}" src="{{ url }}">
{% endfor %}
</noscript>
</section>
{% endif %}
<section><h2>Runs</h2>
{{ parts.table(header, rows) }}
</section>
{% if charts %}
{{ parts.charts(charts) }}
{% endif %}
{% endblock %}
"""

"""Compares runs: a table, comparison.png, and comparison.html with curves to hover and zoom."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.html_page import data_url, render_page
from data_pipeline.plot_style import GRID, QUIET, hide_frame, new_figure, shortened, to_png
from data_pipeline.storage.atomic_write import write_durably
from pretrain.exit_codes import ExitCode
from pretrain.run.outcome import TRAINING, read_outcome
from pretrain.tracking.console import short_number
from pretrain.tracking.interactive import COLOURS, TARGET, comparison_charts
from pretrain.tracking.metrics_file import read_metrics
from pretrain.tracking.series import Records, Series, of_kind, range_to_show, smoothed, thin, values_of

HEADER = ("run", "steps", "final validation loss", "bits per byte", "tokens/s", "state")
PAGE_FILE, IMAGE_FILE = "comparison.html", "comparison.png"
LONGEST_STATE = 60
MOST_CURVES = 30
"""Runs whose curves are drawn: the best ones."""


_STATES = {ExitCode.MISTAKE: "refused", ExitCode.IN_USE: "in use", ExitCode.STOPPED: "stopped"}
"""Exit codes that decide the state. The run itself may have recorded no end, or an earlier one."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    label: str
    run_dir: Path
    exit_code: int | None = None
    """The exit code of its process, if the run ended just now; None if it ended before or never started."""

    @cached_property
    def records(self) -> Records:
        return read_metrics(self.run_dir)

    @cached_property
    def state(self) -> str:
        """finished, stopped, failed, refused, in use by another process, killed or not started."""
        outcome = read_outcome(self.run_dir)
        if self.exit_code in _STATES:
            return _STATES[ExitCode(self.exit_code)]
        if outcome is None:
            return "not started" if self.exit_code is None else f"failed (exit code {self.exit_code})"
        if outcome.state == TRAINING:
            return "killed" if self.exit_code is None else f"failed (exit code {self.exit_code})"
        return outcome.state

    @property
    def reason(self) -> str:
        """Why it ended."""
        outcome = read_outcome(self.run_dir)
        return "" if outcome is None else outcome.reason

    @property
    def final(self) -> dict[str, Any]:
        """The validation after the last step; empty if the run did not finish."""
        validations = of_kind(self.records, "validation")
        return dict(validations[-1]) if validations and self.state == "finished" else {}

    def row(self) -> list[str]:
        """Texts for HEADER."""
        train = of_kind(self.records, "train")
        speeds = sorted(value for value in values_of(train, "tokens_per_second") if math.isfinite(value))
        return [
            self.label,
            f"{train[-1]['step']:,}" if train else "-",
            _rounded(self.final.get("loss")),
            _rounded(self.final.get("bits_per_byte")),
            short_number(speeds[len(speeds) // 2]) if speeds else "-",
            f"{self.state}: {self.reason}" if self.state == "failed" else self.state,
        ]


def as_text(cells: Sequence[Cell]) -> str:
    """The table in aligned columns, best run marked."""
    best = best_of(cells)
    rows = [list(HEADER)]
    for cell in cells:
        *figures, state = cell.row()
        rows.append([*figures, f"{state}, best" if cell is best else state[:LONGEST_STATE]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def best_of(cells: Sequence[Cell]) -> Cell | None:
    """The finished run with the lowest final validation loss."""
    known = [cell for cell in cells if isinstance(loss := cell.final.get("loss"), float) and math.isfinite(loss)]
    return min(known, key=lambda cell: cell.final["loss"], default=None)


def write_comparison(folder: Path, name: str, cells: Sequence[Cell]) -> None:
    """Write comparison.png and comparison.html into the folder."""
    drawn = sorted((cell for cell in cells if cell.records), key=lambda cell: cell.final.get("loss", math.inf))
    curves = {
        "Training loss, smoothed (nats per token)": _curves(drawn[:MOST_CURVES], "train"),
        "Validation loss (nats per token)": _curves(drawn[:MOST_CURVES], "validation"),
    }
    image = _image(name, curves)
    write_durably(folder / IMAGE_FILE, image)
    best = best_of(cells)
    page = render_page(
        _PAGE,
        name=name,
        header=HEADER,
        rows=[cell.row() for cell in cells],
        best=None if best is None else best.label,
        target=TARGET,
        charts=comparison_charts(curves),
        image=data_url(image),
        not_drawn=len(drawn[MOST_CURVES:]),
    )
    write_durably(folder / PAGE_FILE, page)


def _curves(cells: Sequence[Cell], kind: str) -> dict[str, tuple[Series, Series]]:
    """Steps and losses by label; of validations those at the interval, which all read as many samples."""
    from pretrain.tracking.series import validation_curves

    found = {}
    for cell in cells:
        if kind == "train":
            records = of_kind(cell.records, "train")
            found[cell.label] = values_of(records, "step"), smoothed(values_of(records, "loss"))
        elif curves := validation_curves(cell.records):
            found[cell.label] = curves[0].steps, curves[0].loss
    return found


def _image(name: str, charts: dict[str, dict[str, tuple[Series, Series]]]) -> bytes:
    figure = new_figure(name, 6.4)
    for axes, (title, runs) in zip(figure.subplots(len(charts), sharex=True), charts.items(), strict=True):
        ranges = []
        for number, (label, (steps, values)) in enumerate(runs.items()):
            chosen, colour = thin(len(steps)), COLOURS[number % len(COLOURS)]
            marker = "o" if len(steps) < 5 else None
            text = shortened(label, 60).replace("$", r"\$")
            axes.plot(
                steps[chosen], values[chosen], color=colour, linewidth=1.5, marker=marker, markersize=4, label=text
            )
            ranges += [found] if (found := range_to_show(values)) else []
        if ranges:
            axes.set_ylim(min(low for low, _ in ranges), max(high for _, high in ranges))
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(color=GRID, linewidth=0.8)
        hide_frame(axes)
        if 0 < len(runs) <= len(COLOURS):
            axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("step", color=QUIET)
    return to_png(figure)


def _rounded(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"


_PAGE = """\
{% extends "frame.html" %}
{% import "parts.html" as parts %}
{% block title %}{{ name }}: comparison{% endblock %}
{% block body %}
<header><span class="quiet">comparison of runs</span><h1>{{ name }}</h1>
{% if best %}
<p class="quiet">lowest final validation loss: {{ best }}</p>
{% endif %}
</header>
<section>
{{ parts.table(header, rows) }}
</section>
<section><h2>Curves</h2>
{% if not_drawn %}
<p class="quiet">{{ not_drawn }} more runs are in the table only</p>
{% endif %}
<div id="{{ target }}">{{ "" if charts else "no records yet" }}</div>
<noscript><img alt="curves" src="{{ image }}"></noscript>
</section>
{% if charts %}
{{ parts.charts(charts) }}
{% endif %}
{% endblock %}
"""

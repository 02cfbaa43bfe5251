"""Curves for a browser, to hover and zoom. Bokeh draws them; its script is in the page, so no network is needed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_pipeline.plot_style import ACCENT, GRID, QUIET
from pretrain.tracking.curves import LIGHT, OTHER_VALIDATION, PART_COLOURS, VALIDATION, parts_of_a_step
from pretrain.tracking.series import (
    Records,
    Series,
    of_kind,
    range_to_show,
    smoothed,
    thin,
    validation_curves,
    values_of,
)
from pretrain.tracking.task_values import ACCURACY, BITS, task_curves

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

TARGET = "curves"
"""The id of the element that the curves are put into."""
COLOURS = (ACCENT, VALIDATION, "#3d8b5f", "#7c3aed", "#b8860b", "#c2185b", "#0e7490", "#6b7280", "#84cc16", "#111827")
FEW = 40
"""A curve of at most so many points marks each of them."""

Limits = tuple[float, float]


@dataclass(frozen=True)
class Charts:
    """The contents of two script elements; neither contains text that would end its element."""

    library: str
    content: str
    """JSON for Bokeh.embed.embed_item."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    label: str
    columns: Mapping[str, Series]
    """`step`, `value`, and what else a hover shows: `recorded`, `tokens`."""
    colour: str
    width: float = 1.8
    is_marked: bool = False
    """Points without a line."""
    hover: Literal["left", "right", "near", "none"] = "right"
    """The side of the point on which its values appear, so that two do not overlap; near: only at the point."""


def run_charts(records: Records) -> Charts | None:
    """Loss, learning rate, gradient norm, speed, the parts of a step, and tasks, over steps; they zoom together.

    None: there are no records yet.
    """
    train, validations = of_kind(records, "train"), validation_curves(records)
    loss = [
        *_lines(train, "loss", "training", is_noisy=True),
        *(
            Line(
                curve.label,
                {"step": curve.steps[kept], "value": curve.loss[kept]},
                VALIDATION if curve.is_main else OTHER_VALIDATION,
                is_marked=not curve.is_main,
                hover="left",
            )
            for curve in validations
            for kept in [thin(len(curve.steps))]
        ),
    ]
    of_loss = range_to_show(values_of(train, "loss"), *(curve.loss for curve in validations))
    of_norm = range_to_show(values_of(train, "grad_norm"))
    charts = [
        _chart("Loss (nats per token)", loss, "0.0000", 380, of_loss),
        _chart("Learning rate", _lines(train, "lr", "learning rate"), "0.000e+0"),
        _chart(
            "Gradient norm before clipping",
            _lines(train, "grad_norm", "smoothed", is_noisy=True),
            "0.000",
            260,
            of_norm,
        ),
        _chart("Tokens per second", _lines(train, "tokens_per_second", "tokens per second"), "0.00a"),
        _parts_chart(train),
        _chart("Accuracy of tasks", _task_lines(records, ACCURACY), "0.000"),
        _chart("Bits per byte of tasks and domains", _task_lines(records, BITS), "0.000"),
    ]
    charts[3].yaxis.formatter = _short_numbers()
    return _embedded(charts, last_step=max((record["step"] for record in records), default=1))


def comparison_charts(charts: Mapping[str, Mapping[str, tuple[Series, Series]]]) -> Charts | None:
    """Charts by title, each with a line for each run: label -> (steps, values)."""
    drawn, last_step = [], 1.0
    for title, runs in charts.items():
        lines, ranges = [], []
        for number, (label, (steps, values)) in enumerate(runs.items()):
            chosen = thin(len(steps))
            columns = {"step": steps[chosen], "value": values[chosen]}
            lines.append(Line(label, columns, COLOURS[number % len(COLOURS)], hover="near"))
            ranges += [found] if (found := range_to_show(values)) else []
            last_step = max(last_step, *steps[-1:])
        limits = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
        drawn.append(_chart(title, lines, "0.0000", 380, limits))
    return _embedded(drawn, last_step)


def _lines(train: Records, key: str, label: str, is_noisy: bool = False) -> Iterator[Line]:
    """One value of the records as a line; a noisy one as a light line under a smoothed one."""
    values, chosen = values_of(train, key), thin(len(train))
    line = smoothed(values) if is_noisy else values
    columns = {name: values_of(train, name)[chosen] for name in ("step", "tokens")}
    if line is not values:
        columns["recorded"] = values[chosen]
        yield Line("each record", columns | {"value": values[chosen]}, LIGHT, width=0.8, hover="none")
    yield Line(label, columns | {"value": line[chosen]}, ACCENT)


def _task_lines(records: Records, figure: str) -> Iterator[Line]:
    """A line for each task or domain that has this figure."""
    for number, (name, points) in enumerate(task_curves(of_kind(records, "validation"), figure).items()):
        steps, values = np.array(points, dtype=np.float64).T
        yield Line(name, {"step": steps, "value": values}, COLOURS[number % len(COLOURS)], hover="near")


def _chart(
    title: str, lines: Iterator[Line] | Sequence[Line], number: str, height: int = 260, limits: Limits | None = None
) -> "Figure":
    from bokeh.models import ColumnDataSource, DataRange1d, HoverTool, Range1d

    chart = _empty_chart(title, height, Range1d(start=limits[0], end=limits[1]) if limits else DataRange1d(start=0))
    for line in lines:
        if not len(line.columns["step"]):
            continue
        source = ColumnDataSource(dict(line.columns))
        # $$ would begin a formula, whose script is not in the page.
        label = line.label.replace("$$", "$ $")
        style: dict[str, Any] = {"source": source, "color": line.colour, "legend_label": label, "name": label}
        if line.is_marked:
            drawn = chart.scatter("step", "value", size=9, marker="diamond", **style)
        else:
            drawn = chart.line("step", "value", line_width=line.width, **style)
            if line.hover != "none" and len(line.columns["step"]) <= FEW:
                chart.scatter("step", "value", size=5, **style)
        if line.hover != "none":
            shown = [("", "$name"), ("step", "@step{0,0}"), ("value", f"@value{{{number}}}")]
            shown += [(name, form) for name, form in _MORE.items() if name in line.columns]
            shown = [(name, form.replace("NUMBER", number)) for name, form in shown]
            mode, side = ("mouse", "horizontal") if line.hover == "near" else ("vline", line.hover)
            chart.add_tools(HoverTool(renderers=[drawn], tooltips=shown, mode=mode, attachment=side))
    return _with_legend(chart)


_MORE = {"recorded": "@recorded{NUMBER}", "tokens": "@tokens{0.00a}"}


def _parts_chart(train: Records) -> "Figure":
    """The time of each part of a step, in milliseconds."""
    from bokeh.models import ColumnDataSource, DataRange1d, HoverTool

    chart = _empty_chart("Milliseconds per step", 260, DataRange1d(start=0))
    if not train:
        return chart
    chosen, parts = thin(len(train)), parts_of_a_step(train)
    columns = {name: 1000 * part[chosen] for name, part in parts.items()}
    columns["total"] = np.sum(list(columns.values()), axis=0)
    source = ColumnDataSource(columns | {"step": values_of(train, "step")[chosen]})
    names, colours = list(parts), list(PART_COLOURS.values())
    chart.varea_stack(names, x="step", source=source, color=colours, legend_label=names)
    top = chart.line("step", "total", source=source, color=QUIET, line_width=0.5)
    shown = [("step", "@step{0,0}"), *((name, f"@{{{name}}}{{0.0}} ms") for name in columns)]
    chart.add_tools(HoverTool(renderers=[top], tooltips=shown, mode="vline"))
    chart.legend.orientation = "horizontal"
    chart.legend.location = "bottom_left"
    return _with_legend(chart)


def _empty_chart(title: str, height: int, y_range: Any) -> "Figure":
    from bokeh.models import BoxZoomTool, NumeralTickFormatter
    from bokeh.plotting import figure

    chart = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        y_range=y_range,
        tools="box_zoom,pan,wheel_zoom,reset",
        toolbar_location="above",
    )
    chart.toolbar.logo = None
    chart.toolbar.active_drag = next(tool for tool in chart.toolbar.tools if isinstance(tool, BoxZoomTool))
    chart.outline_line_color = None
    chart.title.text_color = "#1f2937"
    chart.xgrid.grid_line_color = chart.ygrid.grid_line_color = GRID
    for axis in (*chart.xaxis, *chart.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = QUIET
    chart.xaxis.formatter = NumeralTickFormatter(format="0,0")
    return chart


def _short_numbers() -> Any:
    from bokeh.models import NumeralTickFormatter

    return NumeralTickFormatter(format="0.[0]a")


def _with_legend(chart: "Figure") -> "Figure":
    """A click on a name hides its curve; one curve needs no name."""
    if chart.legend:
        chart.legend.visible = len(chart.legend.items) > 1
        chart.legend.click_policy = "hide"
        chart.legend.background_fill_alpha = 0.8
        chart.legend.border_line_color = None
    return chart


def _embedded(charts: Sequence["Figure"], last_step: float) -> Charts | None:
    """The charts in one column, which share their range of steps; None if all are empty."""
    from bokeh.embed import json_item
    from bokeh.layouts import column
    from bokeh.models import Range1d
    from bokeh.resources import Resources

    # Bokeh warns of an empty chart.
    drawn, steps = [chart for chart in charts if chart.renderers], Range1d(start=0, end=1.01 * last_step)
    if not drawn:
        return None
    for chart in drawn:
        chart.x_range = steps
    item = json_item(column(drawn, sizing_mode="stretch_width"), TARGET)
    library = Resources(mode="inline", components=["bokeh"]).js_raw[0]
    return Charts(library, json.dumps(item).replace("<", "\\u003c"))

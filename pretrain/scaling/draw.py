"""Plots of a study as PNG images, and as charts for a page, to hover and zoom."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.plot_style import GRID, QUIET, hide_frame, new_figure, to_png
from pretrain.scaling.plots import Plot, Series
from pretrain.tracking.interactive import COLOURS, TARGET, Charts

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

HEIGHT = 380
"""Pixels of a chart on a page."""


def png_of(plot: Plot, name: str) -> bytes:
    """The plot as a PNG image; `name` says which ladder it is of."""
    figure = new_figure(f"{name}: {plot.title}", 5.0)
    axes = figure.subplots()
    labelled = set()
    for each in plot.series:
        label = "_" if each.label in labelled else each.label
        labelled.add(each.label)
        colour = _colour(each)
        if each.kind == "line":
            axes.plot(each.x, each.y, color=colour, linewidth=1.4, label=label)
        else:
            marker, size = ("D", 42) if each.kind == "diamonds" else ("o", 18)
            axes.scatter(each.x, each.y, s=size, marker=marker, color=colour, label=label, zorder=3, linewidths=0)
    axes.set_xscale("log" if plot.log_x else "linear")
    axes.set_yscale("log" if plot.log_y else "linear")
    if plot.log_y:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        # A loss spans less than a decade: the usual ticks of a log axis would be one or two.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(plot.x_label, color=QUIET)
    axes.set_ylabel(plot.y_label, color=QUIET)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    hide_frame(axes)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return to_png(figure)


def charts_of(plots: Sequence[Plot]) -> Charts:
    """All plots in one column, for the element TARGET of a page. Its script is inside, so it needs no network."""
    from bokeh.embed import json_item
    from bokeh.layouts import column
    from bokeh.resources import Resources

    item = json_item(column([_chart(plot) for plot in plots], sizing_mode="stretch_width"), TARGET)
    library = Resources(mode="inline", components=["bokeh"]).js_raw[0]
    return Charts(library, json.dumps(item).replace("<", "\\u003c"))


def _chart(plot: Plot) -> "Figure":
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    chart = figure(
        title=plot.title,
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_axis_type="log" if plot.log_x else "linear",
        y_axis_type="log" if plot.log_y else "linear",
        x_axis_label=plot.x_label,
        y_axis_label=plot.y_label,
        tools="box_zoom,pan,wheel_zoom,reset",
        toolbar_location="above",
    )
    chart.toolbar.logo = None
    chart.outline_line_color = None
    chart.xgrid.grid_line_color = chart.ygrid.grid_line_color = GRID
    for axis in (*chart.xaxis, *chart.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = QUIET
    for each in plot.series:
        # $$ would begin a formula, whose script is not in the page.
        label, colour = each.label.replace("$$", "$ $"), _colour(each)
        names = list(each.names) or [""] * len(each.x)
        source = ColumnDataSource({"x": np.asarray(each.x), "y": np.asarray(each.y), "name": names})
        if each.kind == "line":
            chart.line("x", "y", source=source, color=colour, line_width=1.6, legend_label=label)
            continue
        marker, size = ("diamond", 12) if each.kind == "diamonds" else ("circle", 6)
        drawn = chart.scatter("x", "y", source=source, color=colour, size=size, marker=marker, legend_label=label)
        shown = [
            ("", "@name"),
            (plot.x_label, "@x{0.0000e+0}" if plot.log_x else "@x{0.0000}"),
            (plot.y_label, "@y{0.0000}"),
        ]
        chart.add_tools(HoverTool(renderers=[drawn], tooltips=shown))
    chart.add_layout(chart.legend[0], "right")
    chart.legend.click_policy = "hide"
    chart.legend.border_line_color = None
    chart.legend.label_text_font_size = "11px"
    return chart


def _colour(each: Series) -> str:
    return QUIET if each.colour is None else COLOURS[each.colour % len(COLOURS)]

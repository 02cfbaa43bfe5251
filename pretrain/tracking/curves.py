"""The curves of a run as PNG images. Thread-safe."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.plot_style import ACCENT, GRID, QUIET, hide_frame, new_figure, to_png
from pretrain.tracking.console import short_number
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT, VALIDATION, OTHER_VALIDATION = "#a9c3e6", "#d9622b", "#7c3aed"
PART_COLOURS = {"forward-backward": "#24589c", "optimizer": "#5fa3a0", "data": "#d9622b", "other": "#c9ced6"}


def draw_curves(name: str, records: Records) -> dict[str, bytes]:
    """PNG images by file name: loss.png first, learning_rate.png, gradient_norm.png and speed.png."""
    train = of_kind(records, "train")
    return {
        "loss.png": _loss(name, train, records),
        "learning_rate.png": _single(name, train, "lr", "learning rate"),
        "gradient_norm.png": _single(name, train, "grad_norm", "gradient norm before clipping", is_noisy=True),
        "speed.png": _speed(name, train),
    }


def parts_of_a_step(train: Records) -> dict[str, Series]:
    """Seconds of each part of a step; `other` is the remaining time."""
    parts = {
        "forward-backward": values_of(train, "seconds_forward_backward"),
        "optimizer": values_of(train, "seconds_optimizer"),
        "data": values_of(train, "seconds_data"),
    }
    parts = {name: np.nan_to_num(part) for name, part in parts.items()}
    total = np.nan_to_num(values_of(train, "seconds_step"))
    return parts | {"other": np.maximum(total - sum(parts.values()), 0.0)}


def _loss(name: str, train: Records, records: Records) -> bytes:
    figure = new_figure(name, 5.0)
    axes = figure.subplots()
    steps, loss = values_of(train, "step"), values_of(train, "loss")
    _line(axes, steps, loss, "training", is_noisy=True)
    validations = validation_curves(records)
    for curve in validations:
        label = curve.label
        if math.isfinite(curve.loss[-1]):
            label += f" (last {curve.loss[-1]:.3f})"
        style, colour = ("o-", VALIDATION) if curve.is_main else ("D", OTHER_VALIDATION)
        axes.plot(curve.steps, curve.loss, style, color=colour, markersize=4.5, label=label, zorder=4)
    _limit(axes, loss, *(curve.loss for curve in validations))
    _dress(axes, "loss (nats per token)")
    if train and train[-1].get("tokens") and train[-1]["step"]:
        per_step = train[-1]["tokens"] / train[-1]["step"]
        top = axes.secondary_xaxis("top", functions=(lambda step: step * per_step, lambda tokens: tokens / per_step))
        top.set_xlabel("tokens", color=QUIET)
        top.xaxis.set_major_formatter(_short_number_formatter())
        top.tick_params(colors=QUIET, length=0)
        top.spines["top"].set_visible(False)
    if len(train) or validations:
        axes.legend(frameon=False, loc="upper right")
    return to_png(figure)


def _single(name: str, train: Records, key: str, label: str, is_noisy: bool = False) -> bytes:
    figure = new_figure(name, 3.2)
    axes = figure.subplots()
    values = values_of(train, key)
    _line(axes, values_of(train, "step"), values, label, is_noisy)
    if is_noisy:
        _limit(axes, values)
    axes.set_ylim(bottom=0)
    _dress(axes, label)
    return to_png(figure)


def _speed(name: str, train: Records) -> bytes:
    figure = new_figure(name, 5.4)
    upper, lower = figure.subplots(2, sharex=True)
    steps, speed = values_of(train, "step"), values_of(train, "tokens_per_second")
    _line(upper, steps, speed, "tokens per second", is_noisy=False)
    upper.set_ylim(bottom=0)
    upper.yaxis.set_major_formatter(_short_number_formatter())
    _dress(upper, "tokens per second", x_label="")

    parts = parts_of_a_step(train)
    if train:
        chosen = thin(len(steps))
        # A record covers the steps since the previous one; the first record covers those from the start.
        started = np.concatenate([[0.0], steps[chosen]])
        milliseconds = [1000 * part[np.concatenate([chosen[:1], chosen])] for part in parts.values()]
        lower.stackplot(started, milliseconds, labels=list(parts), colors=list(PART_COLOURS.values()))
        lower.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.2)
    lower.set_ylim(bottom=0)
    _dress(lower, "ms per step")
    return to_png(figure)


def _line(axes: "Axes", steps: Series, values: Series, label: str, is_noisy: bool) -> None:
    """Thin, light raw points under a smoothed line; few points without smoothing."""
    chosen, line = thin(len(steps)), smoothed(values) if is_noisy else values
    if line is not values:
        axes.plot(steps[chosen], values[chosen], color=LIGHT, linewidth=0.8)
    marker = "o" if len(steps) < 5 else None
    axes.plot(steps[chosen], line[chosen], color=ACCENT, linewidth=1.8, marker=marker, markersize=4, label=label)


def _limit(axes: "Axes", values: Series, *others: Series) -> None:
    limits = range_to_show(values, *others)
    if limits is not None:
        axes.set_ylim(limits)


def _dress(axes: "Axes", y_label: str, x_label: str = "step") -> None:
    axes.set_xlabel(x_label, color=QUIET)
    axes.set_ylabel(y_label, color=QUIET)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.has_data():
        axes.margins(x=0.01)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(_whole_number_locator())
    hide_frame(axes)
    if not axes.has_data():
        axes.text(0.5, 0.5, "no records yet", transform=axes.transAxes, ha="center", va="center", color=QUIET)


def _short_number_formatter() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: short_number(value))


def _whole_number_locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)

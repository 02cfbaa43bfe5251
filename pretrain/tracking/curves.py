"""The curves of a run as PNG images, drawn without pyplot: no global state, so any thread may draw."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pretrain.tracking.console import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
Series = NDArray[np.float64]

_STRONG, _LIGHT, _VALIDATION, _GREY = "#24589c", "#a9c3e6", "#d9622b", "#6b7280"
_PART_COLOURS = {"forward-backward": "#24589c", "optimizer": "#5fa3a0", "data": "#d9622b", "other": "#c9ced6"}
_MAX_POINTS = 1500  # more than an image is wide in pixels


def draw_curves(records: Records) -> dict[str, bytes]:
    """PNG images by file name: loss.png first, learning_rate.png, gradient_norm.png and speed.png."""
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    return {
        "loss.png": _loss(train, validation),
        "learning_rate.png": _single(train, "lr", "learning rate"),
        "gradient_norm.png": _single(train, "grad_norm", "gradient norm before clipping", smoothed=True),
        "speed.png": _speed(train),
    }


def smooth(values: Series, window: int) -> Series:
    """Mean of the finite values in a window around each point, narrower at both ends; NaN where there are none."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    centre = np.arange(len(values))
    # At the start no further ahead than behind, or a falling curve would be drawn too low there.
    behind = np.minimum(window // 2, centre)
    first, past = centre - behind, np.minimum(centre + behind, len(values) - 1) + 1
    number = counts[past] - counts[first]
    return np.where(number > 0, (sums[past] - sums[first]) / np.maximum(number, 1), np.nan)


def _loss(train: Records, validation: Records) -> bytes:
    figure = _figure(height=5.0)
    axes = figure.subplots()
    steps, loss = _series(train, "step"), _series(train, "loss")
    _line(axes, steps, loss, "training", smoothed=True)
    validation_steps, validation_loss = _series(validation, "step"), _series(validation, "loss")
    if len(validation):
        label = "validation"
        if math.isfinite(validation_loss[-1]):
            label += f" (last {validation_loss[-1]:.3f})"
        axes.plot(validation_steps, validation_loss, "o-", color=_VALIDATION, markersize=4.5, label=label, zorder=4)
    _limit_to_bulk(axes, loss, validation_loss)
    _dress(axes, "loss (nats per token)")
    if train and train[-1].get("tokens") and train[-1]["step"]:
        per_step = train[-1]["tokens"] / train[-1]["step"]
        top = axes.secondary_xaxis("top", functions=(lambda step: step * per_step, lambda tokens: tokens / per_step))
        top.set_xlabel("tokens", color=_GREY)
        top.xaxis.set_major_formatter(_short_number_formatter())
        top.tick_params(colors=_GREY, length=0)
        top.spines["top"].set_visible(False)
    if len(train) or len(validation):
        axes.legend(frameon=False, loc="upper right")
    return _png(figure)


def _single(train: Records, key: str, label: str, smoothed: bool = False) -> bytes:
    figure = _figure(height=3.2)
    axes = figure.subplots()
    values = _series(train, key)
    _line(axes, _series(train, "step"), values, label, smoothed)
    if smoothed:
        _limit_to_bulk(axes, values, values[:0])
    axes.set_ylim(bottom=0)
    _dress(axes, label)
    return _png(figure)


def _speed(train: Records) -> bytes:
    figure = _figure(height=5.4)
    upper, lower = figure.subplots(2, sharex=True)
    steps, speed = _series(train, "step"), _series(train, "tokens_per_second")
    _line(upper, steps, speed, "tokens per second", smoothed=False)
    upper.set_ylim(bottom=0)
    upper.yaxis.set_major_formatter(_short_number_formatter())
    _dress(upper, "tokens per second", x_label="")

    total = _series(train, "seconds_step")
    parts = {
        "forward-backward": _series(train, "seconds_forward_backward"),
        "optimizer": _series(train, "seconds_optimizer"),
        "data": _series(train, "seconds_data"),
    }
    parts = {name: np.nan_to_num(part) for name, part in parts.items()}
    parts["other"] = np.maximum(np.nan_to_num(total) - sum(parts.values()), 0.0)
    if train:
        chosen = _thin(steps)
        # A record speaks for the steps before it, the first one from the start.
        begun = np.concatenate([[0.0], steps[chosen]])
        milliseconds = [1000 * part[np.concatenate([chosen[:1], chosen])] for part in parts.values()]
        lower.stackplot(begun, milliseconds, labels=list(parts), colors=list(_PART_COLOURS.values()))
        lower.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.2)
    lower.set_ylim(bottom=0)
    _dress(lower, "ms per step")
    return _png(figure)


def _line(axes: "Axes", steps: Series, values: Series, label: str, smoothed: bool) -> None:
    """Raw points thin and light under a smoothed line; few points as they are."""
    chosen = _thin(steps)
    if smoothed and len(steps) >= 20:
        axes.plot(steps[chosen], values[chosen], color=_LIGHT, linewidth=0.8)
        values = smooth(values, window=max(5, len(steps) // 30))
    marker = "o" if len(steps) < 5 else None
    axes.plot(steps[chosen], values[chosen], color=_STRONG, linewidth=1.8, marker=marker, markersize=4, label=label)


def _limit_to_bulk(axes: "Axes", values: Series, others: Series) -> None:
    """Let the first steps and rare spikes leave the picture, so that the rest of the curve can be read."""
    settled = values[len(values) // 50 :] if len(values) >= 50 else values
    settled = settled[np.isfinite(settled)]
    others = others[np.isfinite(others)]
    if len(settled) < 2 or settled.min() == settled.max():
        return
    low, high = settled.min(), np.quantile(settled, 0.998)
    if len(others):
        low, high = min(low, others.min()), max(high, others.max())
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def _thin(steps: Series) -> NDArray[np.int64]:
    """Indices of at most _MAX_POINTS points, the last one among them."""
    number = len(steps)
    if number <= _MAX_POINTS:
        return np.arange(number)
    return np.unique(np.linspace(0, number - 1, _MAX_POINTS).astype(np.int64))


def _series(records: Records, key: str) -> Series:
    return np.array([float(record.get(key, math.nan)) for record in records], dtype=np.float64)


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(9.0, height), dpi=110, layout="constrained")


def _dress(axes: "Axes", y_label: str, x_label: str = "step") -> None:
    axes.set_xlabel(x_label, color=_GREY)
    axes.set_ylabel(y_label, color=_GREY)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.has_data():
        axes.margins(x=0.01)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(_whole_number_locator())
    axes.tick_params(colors=_GREY, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not axes.has_data():
        axes.text(0.5, 0.5, "no records yet", transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _short_number_formatter() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: short_number(value))


def _whole_number_locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()

"""A result as a plot: the times of the steps, and the parts of a step beside their ideal times."""

import io
from typing import TYPE_CHECKING

from pretrain.bench.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "matrix products": "#24589c",
    "attention": "#5b8fd1",
    "elementwise and norms": "#5fa3a0",
    "communication": "#8a63a8",
    "optimizer": "#d9a52b",
    "data": "#d9622b",
    "idle": "#c9ced6",
}


def draw(result: Result) -> bytes:
    """A PNG image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 6.0), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2)
    _steps(upper, result)
    _parts(lower, result)
    figure.suptitle(f"{result['model']} on {result['environment']['device']}", fontsize=11)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _steps(axes: "Axes", result: Result) -> None:
    step = result["step_seconds"]
    times = [1000 * seconds for seconds in step["all"]]
    axes.plot(range(1, len(times) + 1), times, "o-", color="#24589c", markersize=3, linewidth=0.8)
    for name, style in (("median", "-"), ("p95", "--")):
        value = 1000 * step[name]
        axes.axhline(value, color="#6b7280", linestyle=style, linewidth=1, label=f"{name} {value:.2f} ms")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("timed step")
    axes.set_ylabel("ms")
    axes.legend(frameon=False, loc="lower right")


def _parts(axes: "Axes", result: Result) -> None:
    left = {"measured": 0.0, "ideal": 0.0}
    for row in result["roofline"]:
        for bar, seconds in (("measured", row["seconds"]), ("ideal", row["ideal_seconds"] or 0.0)):
            label = row["part"] if bar == "measured" else None
            axes.barh(bar, 1000 * seconds, left=left[bar], color=_COLOURS[row["part"]], label=label)
            left[bar] += 1000 * seconds
    axes.invert_yaxis()
    axes.set_xlabel("ms of the median step")
    if result["roofline"]:
        axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25))

"""Plots in a common style, drawn without pyplot: no global state, so any thread may draw."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID, ACCENT = "#1f2937", "#6b7280", "#e5e7eb", "#24589c"
MAX_NAME_CHARS = 90


def new_figure(name: str, height: float) -> "Figure":
    """A figure titled with the name of what it shows, so that a copied image still says where it is from."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), dpi=110, layout="constrained")
    figure.suptitle(shortened(name), x=0.01, ha="left", fontsize=10, color=QUIET, parse_math=False)
    return figure


def hide_frame(axes: "Axes") -> None:
    """Hide the frame and tick marks."""
    axes.tick_params(colors=QUIET, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def to_png(figure: "Figure") -> bytes:
    """The figure as PNG bytes; the same figure and matplotlib version give the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image, metadata={"Software": None})
    return image.getvalue()


def shortened(name: str, limit: int = MAX_NAME_CHARS) -> str:
    """The name on one line. A long name keeps its end, where names differ most."""
    line = " ".join(name.split())
    return line if len(line) <= limit else f"…{line[1 - limit :]}"

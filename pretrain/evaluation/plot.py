"""The figures of tasks over the checkpoints of a run, as a PNG image."""

import math
from collections.abc import Mapping, Sequence

from data_pipeline.plot_style import GRID, QUIET, hide_frame, new_figure, to_png

Points = Sequence[tuple[int, float, float]]
"""(step, value, standard error)"""


def draw_figures(name: str, curves: Mapping[str, Mapping[str, Points]]) -> bytes:
    """A panel for bits per byte and one for accuracies, if there are any; `curves`: points by figure, then by task."""
    panels = {
        "bits per byte": dict(curves.get("bits_per_byte", {})),
        "accuracy": {
            f"{task}: {figure}": points
            for figure, of_tasks in curves.items()
            if figure.startswith("acc")
            for task, points in of_tasks.items()
        },
    }
    shown = {title: lines for title, lines in panels.items() if lines}
    figure = new_figure(name, 3.6 * max(1, len(shown)))
    axes = figure.subplots(max(1, len(shown)), 1, squeeze=False)[:, 0]
    for each, (title, lines) in zip(axes, shown.items(), strict=False):
        for label, points in lines.items():
            errors = [0.0 if math.isnan(error) else error for _, _, error in points]
            steps, values = [step for step, _, _ in points], [value for _, value, _ in points]
            each.errorbar(steps, values, yerr=errors, label=label, marker="o", markersize=4, capsize=2, linewidth=1.6)
        each.set_ylabel(title, color=QUIET)
        each.grid(color=GRID)
        each.legend(frameon=False, fontsize=8)
        hide_frame(each)
    axes[-1].set_xlabel("step", color=QUIET)
    return to_png(figure)

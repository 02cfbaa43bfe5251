"""`pretrain scale report`: a page with the law of a ladder, its predictions and plots."""

import argparse
import sys

from data_pipeline.errors import UserError
from pretrain.commands.arguments import CommandParser, add_action

HELP = """
Fits the law of the finished runs as `pretrain scale fit` does, compares it with the targets of the ladder, and writes
report.html and its plots as PNG files into the ladder's folder. The wandb group of the ladder gets a run with the
table, the fitted numbers and the plots, unless its runs have tracking=off.

examples:
  pretrain scale report tiny
"""


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "report", "write a page with the law, its predictions and plots", run, HELP)
    parser.add_argument("ladder", metavar="LADDER", help="ladders/NAME, NAME, or the ladder file")


def run(given: argparse.Namespace) -> int:
    from pretrain.scaling.draw import charts_of, png_of
    from pretrain.scaling.ladder.folder import find_ladder, read_ladder
    from pretrain.scaling.ladder.report import PAGE_FILE, Report, write_report
    from pretrain.scaling.ladder.summary import figures_of, send_summary
    from pretrain.scaling.ladder.table import table_of
    from pretrain.scaling.ladder.targets import prediction_lines, predictions
    from pretrain.scaling.ladder.write_table import POINTS_CSV, write_tables
    from pretrain.scaling.laws.points import BadPoints
    from pretrain.scaling.laws.read_table import read_points
    from pretrain.scaling.laws.study import study
    from pretrain.scaling.laws.study_text import study_lines
    from pretrain.scaling.plots import plots_of

    folder = find_ladder(given.ladder)
    rows = table_of(read_ladder(folder))
    write_tables(folder, rows)
    if not any(row.is_complete for row in rows):
        raise UserError(f"{folder}: no run is finished yet", f"pretrain scale status {folder}")
    try:
        law = study(read_points(folder / POINTS_CSV))
    except BadPoints as error:
        images = write_report(folder, Report(folder.name, rows, [error.message]))
        figures: dict[str, float | str] = {}
    else:
        targets = predictions(rows, law)
        plots = plots_of(law)
        drawn = {f"{plot.name}.png": png_of(plot, folder.name) for plot in plots}
        images = write_report(folder, Report(folder.name, rows, study_lines(law), targets, drawn, charts_of(plots)))
        figures = figures_of(law, targets)
        sys.stdout.write("".join(f"{line}\n" for line in (*study_lines(law), "", *prediction_lines(targets))))
    sys.stdout.write(f"  report  {folder / PAGE_FILE} {' '.join(path.name for path in images)}\n")
    sys.stdout.flush()
    send_summary(folder, rows, figures, images)
    return 0

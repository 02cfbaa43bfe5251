"""`pretrain scale table`: the losses of a ladder's runs, from the records in their folders."""

import argparse
import sys
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.commands.arguments import CommandParser, add_action

HELP = """
Reads the records in the run folders and prints a line for each run: final validation loss, the mean of the last
validations at the interval, bits per byte, MFU, GPU-hours, restarts, and whether training diverged. Writes table.csv,
table.json and points.csv, which `pretrain scale fit` reads, into the ladder's folder, and a run with the table into the
wandb group of the ladder, unless its runs have tracking=off.

examples:
  pretrain scale table tiny
  pretrain scale table ladders/tiny --json
"""


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "table", "collect the losses of the runs", run, HELP)
    parser.add_argument("ladder", metavar="LADDER", help="ladders/NAME, NAME, or the ladder file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> int:
    from pretrain.scaling.ladder.folder import find_ladder

    print_table(find_ladder(given.ladder), as_json=given.json)
    return 0


def print_table(folder: Path, *, as_json: bool) -> None:
    """Write the tables into the ladder's folder and print them; raises UserError if no run is finished yet."""
    from pretrain.scaling.ladder.folder import read_ladder
    from pretrain.scaling.ladder.summary import send_summary
    from pretrain.scaling.ladder.table import table_of
    from pretrain.scaling.ladder.write_table import rows_as_json, table_text, write_tables

    rows = table_of(read_ladder(folder))
    write_tables(folder, rows)
    if not any(row.is_complete for row in rows):
        raise UserError(f"{folder}: no run is finished yet", f"pretrain scale status {folder}")
    sys.stdout.write(rows_as_json(rows) if as_json else table_text(rows))
    sys.stdout.flush()
    send_summary(folder, rows)

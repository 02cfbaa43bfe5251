"""`pretrain scale status`: a line for each run of a ladder."""

import argparse
import sys
from pathlib import Path

from pretrain.commands.arguments import CommandParser, add_action

HELP = """
Prints for each run its state, steps, loss and jobs, as `pretrain status` does for single runs.

examples:
  pretrain scale status tiny
"""


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "status", "print a line for each run", run, HELP)
    parser.add_argument("ladder", metavar="LADDER", help="ladders/NAME, NAME, or the ladder file")


def run(given: argparse.Namespace) -> int:
    from pretrain.commands.run_status import all_statuses
    from pretrain.commands.status import lines
    from pretrain.scaling.ladder.folder import find_ladder, read_ladder

    cells = read_ladder(find_ladder(given.ladder))
    statuses, _ = all_statuses([Path(cell.run_dir) for cell in cells if Path(cell.run_dir).is_dir()])
    text = {status.run: "\n".join(lines([status], [])) for status in statuses}
    for cell in cells:
        sys.stdout.write(text.get(cell.run_dir, f"{cell.run_dir}: not started") + "\n")
    return 0

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

    folder = find_ladder(given.ladder)
    cells, queued = read_ladder(folder), queued_tasks(folder)
    statuses, _ = all_statuses([Path(cell.run_dir) for cell in cells if Path(cell.run_dir).is_dir()])
    text = {status.run: "\n".join(lines([status], [])) for status in statuses}
    for number, cell in enumerate(cells):
        waits = f"waits in the queue as {queued[number]}_{number}" if number in queued else "not started"
        sys.stdout.write(text.get(cell.run_dir, f"{cell.run_dir}: {waits}") + "\n")
    return 0


def queued_tasks(folder: Path) -> dict[int, str]:
    """The tasks of the ladder's job arrays that wait or run, with their array's id; empty without Slurm."""
    from data_pipeline.errors import UserError
    from pretrain.run.sweep import SWEEP_FILE, read_sweep
    from pretrain.slurm_client import live_tasks

    if not (folder / SWEEP_FILE).exists():
        return {}
    try:
        return live_tasks([each.job for each in read_sweep(folder).jobs])
    except UserError:
        return {}

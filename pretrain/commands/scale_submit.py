"""`pretrain scale submit`: on Slurm it calls the package `launch`, as `pretrain submit` does."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.commands.arguments import CommandParser, add_action, add_overrides, positive
from pretrain.commands.scale_plan import add_name

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig
    from pretrain.scaling.ladder.cells import Cell

HELP = """
Trains the runs that are not finished: as one Slurm job array, or with --local on this machine. ladders/NAME holds
everything; the runs are one wandb group. The same command again skips finished runs, leaves those that wait or run, and
resumes the others from their newest checkpoint. Sizes and lengths may be added to the file later.

examples:
  pretrain scale submit tiny --local --at-once 2
  pretrain scale submit my-ladder.yaml cluster=gpu_8x80gb
  pretrain scale submit tiny --name tiny-no-decay --local optim.weight_decay=0
"""


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "submit", "train the runs that are missing", run, HELP)
    parser.add_argument("file", metavar="FILE", help="ladder file, or the name of one in conf/scaling")
    add_name(parser)
    parser.add_argument("--local", action="store_true", help="train on this machine instead of Slurm")
    help_ = "with --local: how many runs at a time, default 1"
    parser.add_argument("--at-once", type=positive, default=1, metavar="N", help=help_)
    parser.add_argument("--dry-run", action="store_true", help="check, print the batch script; write nothing")
    add_overrides(parser, "added to the overrides of every run")


def run(given: argparse.Namespace) -> int:
    from pretrain.scaling.ladder.cells import build_cells
    from pretrain.scaling.ladder.folder import folder_of, joined
    from pretrain.scaling.ladder.spec import read_spec

    spec = read_spec(given.file, given.name)
    folder = folder_of(spec.name)
    cells = joined(folder, build_cells(spec, given.overrides))
    if given.local:
        return train_here(folder, cells, given.at_once, is_dry=given.dry_run)
    submit_to_slurm(folder, cells, is_dry=given.dry_run)
    return 0


def train_here(folder: Path, cells: "Sequence[Cell]", at_once: int, *, is_dry: bool) -> int:
    """Train the cells that are not finished, `at_once` at a time; returns the exit code."""
    from pretrain.commands.multirun import check_here, refuse_launcher, say
    from pretrain.commands.scale_table import print_table
    from pretrain.run.sweep import check_members
    from pretrain.scaling.ladder.folder import write_ladder
    from pretrain.scaling.ladder.local import LocalRuns, is_finished
    from pretrain.scaling.ladder.same_data import check_same_data

    refuse_launcher(os.environ)
    # The checkpoint that a branch continues is not there before its trunk trains: it is checked when the branch starts.
    words = {number: without_branch(cell) for number, cell in enumerate(cells) if not is_finished(cell)}
    configs = check_members(words, check_here, "nothing was started")
    check_same_data(cells, list(configs.values()))
    say(f"{folder}: {len(cells)} legal runs, {len(cells) - len(words)} finished before")
    if is_dry:
        return 0
    write_ladder(folder, cells)
    code = LocalRuns(folder, cells, at_once, say).run()
    if any(map(is_finished, cells)):
        print_table(folder, as_json=False)
        sys.stdout.flush()
    return code


def without_branch(cell: "Cell") -> tuple[str, ...]:
    """The overrides without the checkpoint that a branch continues."""
    return tuple(word for word in cell.overrides if not word.startswith("run.branch_from="))


def submit_to_slurm(folder: Path, cells: "Sequence[Cell]", *, is_dry: bool) -> None:
    """Submit the cells that are neither finished nor in the queue, as one job array."""
    from launch.slurm.submit_ladder import Task, submit_tasks
    from pretrain.scaling.ladder.cells import checkpoint_of
    from pretrain.scaling.ladder.local import is_finished

    numbers = {cell.name: number for number, cell in enumerate(cells)}
    tasks = []
    for number, cell in enumerate(cells):
        trunk = None if cell.trunk is None else cells[numbers[cell.trunk]]
        started = (Path(cell.run_dir) / "checkpoints").is_dir()
        waits = trunk is not None and not started and not Path(checkpoint_of(trunk, cell.branch_step)).is_dir()
        after = numbers[trunk.name] if trunk is not None and waits else None
        tasks.append(Task(number, cell.run_dir, cell.overrides, after, is_finished(cell)))
    submit_tasks(folder, tasks, lambda configs: begin(folder, cells, configs), is_dry=is_dry)


def begin(folder: Path, cells: "Sequence[Cell]", configs: "Sequence[RunConfig]") -> None:
    """Check that all runs have one scale of losses, and record the cells."""
    from pretrain.scaling.ladder.folder import write_ladder
    from pretrain.scaling.ladder.same_data import check_same_data

    check_same_data(cells, configs)
    write_ladder(folder, cells)

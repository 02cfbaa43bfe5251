"""`pretrain status`: the status of runs as a table, as lines, or as JSON."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.commands.arguments import CommandParser
from pretrain.config.errors import RunError

if TYPE_CHECKING:
    from pretrain.commands.run_status import Status
    from pretrain.slurm_client import QueuedJob

RUNS = Path("runs")

HELP = """
Shows the given run folders, or all of them in runs/. On a cluster, squeue is asked for the state of their jobs. Prints
a table on a terminal, and plain lines elsewhere.

examples:
  pretrain status
  pretrain status runs/quickstart
  pretrain status runs/sweep/* --json
"""


def add_options(parser: CommandParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders; default: all in runs/")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> int:
    from pretrain.commands.run_status import all_statuses, find_runs

    folders = given.runs or find_runs(RUNS)
    if not folders and not RUNS.is_dir():
        raise RunError(f"{RUNS.absolute()}: no such folder", "name the folder of a run, as in `pretrain status RUN`")
    found, waiting = all_statuses(folders)
    if given.runs:
        waiting = []
    if given.json:
        content = {"runs": [_strict(asdict(each)) for each in found], "other_jobs": [asdict(job) for job in waiting]}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    elif sys.stdout.isatty():
        _print_table(found, waiting)
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines(found, waiting)))
    return 0


def lines(found: "Sequence[Status]", waiting: "Sequence[QueuedJob]") -> Iterator[str]:
    """A line for each run, and a second one for how its last attempt ended."""
    for each in found:
        cells = _cells(each)
        yield f"{each.run}: " + ", ".join(f"{name} {cells[name]}".strip() for name in cells if cells[name])
        if each.ended:
            yield f"  {each.ended}"
    for job in waiting:
        yield f"job {job.id} {job.name}: {_job_state(job)}, submitted in {job.folder}, no attempt of these runs yet"
    if not found and not waiting:
        yield "no runs"


def _print_table(found: "Sequence[Status]", waiting: "Sequence[QueuedJob]") -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    rows = [{"run": each.run.removeprefix(f"{RUNS}/"), **_cells(each)} for each in found]
    # Leave out the columns that are empty for all runs.
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    for name in names:
        table.add_column(name or "state", overflow="fold", no_wrap=name in ("", "step", "loss"))
    for row in rows:
        table.add_row(*(escape(row[name]) for name in names))
    console = Console()
    if rows:
        console.print(table)
    ends = [f"{row['run']}: {each.ended}" for row, each in zip(rows, found, strict=True) if each.ended]
    for line in [*ends, *(lines([], waiting) if waiting or not rows else ())]:
        console.print(line, markup=False, highlight=False)


def _cells(each: "Status") -> dict[str, str]:
    """The cells of a run by their labels; the state has no label."""
    from pretrain.tracking.console import duration, short_number

    known = each.step is not None
    return {
        "": each.state,
        "jobs": ", ".join(each.jobs),
        "restarts": str(each.restarts) if each.restarts else "",
        "step": f"{each.step}/{'?' if each.steps is None else each.steps}" if known else "",
        "loss": "" if each.loss is None else f"{each.loss:.4f}",
        "tokens/s": "" if each.tokens_per_second is None else short_number(each.tokens_per_second),
        "ETA": "" if each.seconds_to_go is None else duration(each.seconds_to_go),
        "record": "" if each.seconds_since_record is None else f"{duration(each.seconds_since_record)} ago",
        "saved": f"step {int(each.checkpoint.removeprefix('step-'))}" if each.checkpoint else "",
    }


def _job_state(job: "QueuedJob") -> str:
    return f"{job.state} ({job.reason})" if job.reason else job.state


def _strict(values: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity and no NaN: they become text."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }

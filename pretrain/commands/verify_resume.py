"""The options of `pretrain verify-resume`, and its report as a table or as JSON."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.commands.arguments import CommandParser, add_overrides, positive
from pretrain.config.changes import REPLAYED_WITH

if TYPE_CHECKING:
    from pretrain.resume.compare import StepPair
    from pretrain.resume.replay import ReplayReport

DIVERGED = 1

HELP = """
Repeats in memory the steps that were recorded after the newest checkpoint that has some. The run folder is only read,
and the run may be training. Compares batch hash, loss, gradient norm, learning rate and loss scale with metrics.jsonl.
Prints `exact`, or `equal within 1e-x because ...`, or the first step that differs (exit code 1). Layout and engine may
differ from the run's: set parallel. and engine. keys, or train.micro_batch_size. If the data has moved, set data.path.

examples:
  pretrain verify-resume runs/quickstart
  pretrain verify-resume runs/quickstart --checkpoint 800 --steps 50 --json
  torchrun --nproc-per-node 2 -m pretrain verify-resume runs/quickstart parallel.tp=2 engine.zero_stage=1
"""


def add_options(parser: CommandParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run; it is read, never written")
    help_ = "recorded steps to repeat; default: those after the checkpoint, at most 10"
    parser.add_argument("--steps", type=positive, metavar="N", help=help_)
    help_ = "start from the checkpoint of this step; default: the newest with enough recorded steps after it"
    parser.add_argument("--checkpoint", type=positive, metavar="STEP", help=help_)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_overrides(parser, config_dir=False)
    parser.override_prefixes = REPLAYED_WITH


def run(given: argparse.Namespace) -> int:
    from pretrain.distributed.grid import world_from_environment
    from pretrain.resume.replay import verify_resume

    report = verify_resume(given.run, given.overrides, steps=given.steps, checkpoint=given.checkpoint)
    rank, _, _ = world_from_environment()
    if rank == 0:
        sys.stdout.write(as_json(report) if given.json else as_table(report))
    return DIVERGED if report.comparison.kind == "diverged" else 0


def as_json(report: "ReplayReport") -> str:
    """One JSON object; infinities and NaN as in metrics.jsonl."""
    from pretrain.resume.compare import QUANTITIES
    from pretrain.tracking.metrics_file import strict

    comparison = asdict(report.comparison)
    if report.comparison.divergence is not None:
        comparison["divergence"] = {name: strict(value) for name, value in comparison["divergence"].items()}
    steps = [
        {"step": pair.step}
        | {
            name: {"recorded": strict(pair.recorded[name]), "replayed": strict(pair.replayed[name])}
            for name in QUANTITIES
            if name in pair.recorded
        }
        for pair in report.pairs
    ]
    whole = {"run": str(report.run), "checkpoint": str(report.checkpoint), **comparison, "steps": steps}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def as_table(report: "ReplayReport") -> str:
    """A line for each step, and the result."""
    head = ("step", "batch", "loss", "now", "grad norm", "now", "lr", "loss scale", "difference")
    rows = [head, *(tuple(_row(pair)) for pair in report.pairs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    first, last = report.pairs[0].step, report.pairs[-1].step
    lines.append(f"{report.run}: steps {first} to {last} recomputed from {report.checkpoint.name}: {report.comparison}")
    return "\n".join(lines) + "\n"


def _row(pair: "StepPair") -> Iterator[str]:
    from pretrain.resume.compare import QUANTITIES

    then, now = pair.recorded, pair.replayed
    yield str(pair.step)
    yield str(now["batch_hash"]) if pair.difference("batch_hash") == 0 else f"{then['batch_hash']} {now['batch_hash']}"
    for name in ("loss", "grad_norm"):
        yield repr(then[name])
        yield repr(now[name])
    for name in ("lr", "loss_scale"):
        yield f"{now[name]:.4g}" if pair.difference(name) == 0 else f"{then[name]!r} {now[name]!r}"
    furthest = pair.difference(*QUANTITIES)
    yield f"{furthest:.0e}" if furthest else "0"

"""`pretrain scale plan`: the runs of a ladder and what they cost, before anything runs."""

import argparse
import json
import sys

from pretrain.commands.arguments import CommandParser, add_action, add_overrides

HELP = """
FILE is a ladder file, or the name of one in conf/scaling. The table has for each run: parameters N without embeddings
and with them, tokens D, compute C = 6ND, steps, batch, learning rate, layout. If the file names its `hardware`, also
GPU-hours, and with a `price` the cost. Nothing is written.

examples:
  pretrain scale plan tiny
  pretrain scale plan my-ladder.yaml cluster=gpu_8x80gb --json
"""


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "plan", "print the runs of a ladder and what they cost", run, HELP)
    parser.add_argument("file", metavar="FILE", help="ladder file, or the name of one in conf/scaling")
    add_name(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_overrides(parser, "added to the overrides of every run")


def add_name(parser: CommandParser) -> None:
    help_ = "name of the ladder instead of the file's, for a variant that overrides make"
    parser.add_argument("--name", metavar="NAME", help=help_)


def run(given: argparse.Namespace) -> int:
    from pretrain.planner.plan import check
    from pretrain.scaling.ladder.cells import build_cells
    from pretrain.scaling.ladder.plan import plan_cells, plan_text
    from pretrain.scaling.ladder.spec import read_spec

    spec = read_spec(given.file, given.name)
    cells = build_cells(spec, given.overrides)
    planned = plan_cells(spec, cells, lambda config: check(config, max(config.cluster.ranks, 1)))
    if given.json:
        sys.stdout.write(json.dumps([each.as_json() for each in planned], indent=1) + "\n")
    else:
        sys.stdout.write(plan_text(planned))
    return 0

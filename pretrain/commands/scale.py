"""`pretrain scale`: a ladder of runs planned, trained and tabled, and the scaling law that they give."""

import importlib

from pretrain.commands.arguments import CommandParser, run_action

HELP = """
A ladder file lists sizes and lengths; every combination is one run. plan prints them with their cost before anything
runs. submit trains those that are missing, as one Slurm job array or here. status prints a line for each run. table
collects their losses. fit fits a scaling law to them, or to any table of runs; predict gives the best run for a
budget; compare gives the effective compute multiplier of a change. report makes a page with the law, its predictions
and plots. `pretrain scale ACTION --help` explains each.

examples:
  pretrain scale plan tiny
  pretrain scale submit tiny --local
  pretrain scale submit my-ladder.yaml cluster=gpu_8x80gb
  pretrain scale status tiny
  pretrain scale table tiny
  pretrain scale fit ladders/tiny
  pretrain scale predict ladders/tiny --flops 1e17
  pretrain scale compare ladders/base ladders/variant
  pretrain scale report tiny
"""
VERBS = ("plan", "submit", "status", "table", "fit", "predict", "compare", "report")
"""Each is the module scale_NAME of this folder, with `add_verb(actions)`."""

run = run_action


def add_options(parser: CommandParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for verb in VERBS:
        importlib.import_module(f"pretrain.commands.scale_{verb}").add_verb(actions)

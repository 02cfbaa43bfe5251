"""`pretrain plan`: a parallel layout checked and its memory computed, without torch and without a GPU."""

import argparse
import sys

from pretrain.commands.arguments import CommandParser, add_overrides, add_ranks, positive_number

HELP = """
Checks the run on a number of ranks. Prints every broken rule, or for each pipeline stage its layers and the memory of
its ranks, and the time that the layout spends in pipeline bubbles and communication. Needs no GPU and starts no
process.

examples:
  pretrain plan --ranks 8 model=llama_8b parallel.tp=2 parallel.pp=2 engine=zero3_bf16
  pretrain plan --ranks 96 --gpu-memory 80 model=gpt3_175b parallel=gpt3_175b engine=zero1_bf16
"""


def add_options(parser: CommandParser) -> None:
    add_ranks(parser)
    help_ = "memory of one device; settings that are `auto` are chosen to fit in it"
    parser.add_argument("--gpu-memory", type=positive_number, metavar="GIB", help=help_)
    add_overrides(parser)


def run(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_run_config
    from pretrain.planner.plan import plan

    sys.stdout.write(plan(load_run_config(given.overrides), given.ranks, given.gpu_memory))
    return 0

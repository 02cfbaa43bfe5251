"""`pretrain evaluate`: the figures of tasks for checkpoints of a run."""

import argparse
import sys

from pretrain.commands.arguments import CommandParser, add_overrides

HELP = """
Scores the newest checkpoint of a run, or all of them, on tasks in JSON lines. A line is a question
  {"context": "The sky is", "choices": [" blue", " a fish"], "answer": 0}
or a text {"text": "..."}. Prints accuracy (by log-probability, per byte, and beyond the choice alone) and bits per byte
with standard errors, and writes them to RUN/evaluation.json. It runs in any layout, also under torchrun.

examples:
  pretrain evaluate run=runs/quickstart 'tasks=[questions.jsonl]'
  pretrain evaluate run=runs/quickstart 'tasks=[questions.jsonl,texts.jsonl]' checkpoint=all
"""


def add_options(parser: CommandParser) -> None:
    from pretrain.commands.explain import keys_of_command

    add_overrides(parser)
    parser.more_help = lambda: keys_of_command("evaluate")


def run(given: argparse.Namespace) -> int:
    from pretrain.bench.table import columns
    from pretrain.config.load import load_evaluate_config
    from pretrain.distributed.grid import world_from_environment
    from pretrain.evaluation.evaluate_run import evaluate_run
    from pretrain.evaluation.results import lines_of

    results = evaluate_run(load_evaluate_config(given.overrides))
    if world_from_environment()[0] == 0:
        rows = [["checkpoint", "task", "items", "figure", "value", "std. error"], *lines_of(results)]
        sys.stdout.write("\n".join(columns(rows, left=(0, 1, 3))) + "\n")
    return 0

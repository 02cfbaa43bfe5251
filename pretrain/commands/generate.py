"""`pretrain generate`: text from a trained model."""

import argparse

from pretrain.commands.arguments import CommandParser, add_overrides

HELP = """
Loads the newest checkpoint of a run and prints text that follows the prompt.

examples:
  pretrain generate run=runs/quickstart prompt="def main("
  pretrain generate run=runs/quickstart prompt="import os" temperature=0 max_new_tokens=64
"""


def add_options(parser: CommandParser) -> None:
    from pretrain.commands.explain import keys_of_command

    add_overrides(parser)
    parser.more_help = lambda: keys_of_command("generate")


def run(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_generate_config
    from pretrain.generation.generate import generate

    generate(load_generate_config(given.overrides))
    return 0

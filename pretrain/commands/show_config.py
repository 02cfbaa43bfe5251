"""`pretrain show-config`: the whole configuration as YAML."""

import argparse
import sys

from pretrain.commands.arguments import CommandParser, add_overrides

HELP = """
Prints every key of `prepare` and `train` with its value.

examples:
  pretrain show-config experiment=quickstart optim.lr=1e-3
  pretrain show-config --describe
"""


def add_options(parser: CommandParser) -> None:
    help_ = "with the meaning, type and default of each key, as comments"
    parser.add_argument("--describe", action="store_true", help=help_)
    add_overrides(parser)


def run(given: argparse.Namespace) -> int:
    from pretrain.commands.explain import described_yaml
    from pretrain.config.load import load_run_config, to_yaml

    text = to_yaml(load_run_config(given.overrides))
    sys.stdout.write(described_yaml(text) if given.describe else text)
    return 0

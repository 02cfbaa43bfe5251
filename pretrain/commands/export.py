"""`pretrain export`: a trained model for other programs."""

import argparse
import sys

from pretrain.commands.arguments import CommandParser, add_overrides

HELP = """
Writes the newest checkpoint of a run as a Hugging Face folder: weights as safetensors, config.json, the tokenizer and
a model card. transformers, vLLM and others load it. Any layout's checkpoint gives the same files.

examples:
  pretrain export run=runs/quickstart into=exports/quickstart
  pretrain export run=runs/big into=exports/big dtype=bfloat16 workers=4 check=false
"""


def add_options(parser: CommandParser) -> None:
    from pretrain.commands.explain import keys_of_command

    add_overrides(parser)
    parser.more_help = lambda: keys_of_command("export")


def run(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_export_config
    from pretrain.export.export import export

    sys.stdout.write(f"{export(load_export_config(given.overrides))}\n")
    return 0

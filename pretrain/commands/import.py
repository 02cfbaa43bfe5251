"""`pretrain import`: a model of another program as a run of this one."""

import argparse
import sys

from pretrain.commands.arguments import CommandParser, add_overrides

HELP = """
Makes a run folder with one checkpoint of the weights in a Hugging Face folder, for generate and for run.init_from of
new runs. Only safetensors are read. Models that this system computes otherwise are refused by the key that differs.

examples:
  pretrain import folder=exports/quickstart run=runs/imported
  pretrain import folder=llama run=runs/llama tokenizer=llama/tokenizer.json
"""


def add_options(parser: CommandParser) -> None:
    from pretrain.commands.explain import keys_of_command

    add_overrides(parser)
    parser.more_help = lambda: keys_of_command("import")


def run(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_import_config
    from pretrain.export.importing import import_folder

    sys.stdout.write(f"{import_folder(load_import_config(given.overrides))}\n")
    return 0

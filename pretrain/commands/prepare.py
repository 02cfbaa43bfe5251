"""`pretrain prepare`: text to tokenizer and shards."""

import argparse
import sys
from typing import TYPE_CHECKING

from pretrain.commands.arguments import CommandParser, add_overrides

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig

HELP = """
Reads text (.txt, folders of source files, JSON lines in .jsonl, .ndjson or .json, each also .gz or .zst), holds out a
validation share, trains a SentencePiece tokenizer and writes packed shards with a manifest into data.path. When run
again, it finishes interrupted work and skips finished work.

examples:
  pretrain prepare 'data.inputs=[my.txt,more.jsonl]'
  pretrain prepare data=stdlib tokenizer=bpe_4k
  pretrain prepare 'data.inputs=[corpus/]' data.name=mine model=gpt3_125m
"""


def add_options(parser: CommandParser) -> None:
    add_overrides(parser)


def run(given: argparse.Namespace) -> int:
    from pretrain.commands.next_steps import after_prepare
    from pretrain.config.load import load_run_config

    config = load_run_config(given.overrides)
    prepare(config)
    sys.stdout.write(after_prepare(config.data, given.overrides))
    return 0


def prepare(config: "RunConfig") -> None:
    """Make the dataset that `train` with the same overrides reads; samples are as long as the model's sequence."""
    from data_pipeline.prepare import dataset
    from pretrain.config.checks import check_prepare

    check_prepare(config)
    dataset.prepare(config.data, config.tokenizer, config.prepare, seq_length=config.model.seq_length)

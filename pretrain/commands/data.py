"""`pretrain data`: inspect, verify, count, download, convert and merge prepared datasets."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.storage.urls import is_url, redact_url
from pretrain.commands.arguments import CommandParser, add_action, add_overrides, positive, run_action, whole_number

if TYPE_CHECKING:
    from data_pipeline.shards.folder import DatasetFolder

FAULTS_FOUND = 1

HELP = """
inspect prints samples as text. verify compares every file, offset and token with the manifest, and exits with 1 if
something differs. stats prints the counts as JSON. convert makes a dataset from Megatron-LM's .bin and .idx, or the
reverse. merge joins several datasets into one. fetch downloads a dataset at a URL into this node's cache before a run
needs it. `pretrain data ACTION --help` explains each.

examples:
  pretrain data inspect data/mine --samples 2
  pretrain data inspect data/mine --seed 1234 --first 80000
  pretrain data verify data/mine
  pretrain data stats data/mine
  pretrain data convert old/corpus_text_document data/mine --to packed tokenizer.path=tokenizer.json
  pretrain data convert data/mine data/mine-megatron --to megatron
  pretrain data merge data/mine data/yours --into data/ours
  pretrain data fetch s3://bucket/mine data.cache.dir=/scratch/cache
"""

CONVERT_HELP = """
--to packed: SOURCE is the common prefix of a Megatron-LM .bin and .idx pair, TARGET the folder of a new dataset.
tokenizer.path (and tokenizer.eod) name the tokenizer that made the tokens. model.seq_length and data.validation_* mean
the same as for `pretrain prepare`: documents are kept whole, held out by a hash of their tokens, and get an
end-of-document token if they lack one. End-of-document tokens that end no document (several in a row, or at the
beginning) are dropped and counted.

--to megatron: SOURCE is a prepared dataset, TARGET a new folder for train.bin, train.idx, validation.bin,
validation.idx and the tokenizer. Documents are in stored order, each with its end-of-document token. The last document
of a split lacks the tokens that did not fill a sample.
"""
MERGE_HELP = """
Writes the samples of all parts, in the order given, into a new dataset. It reads every byte, compares it with its
checksum and writes it again, so it takes the time and the space of a copy. Parts must have the same tokenizer and
sample length. The same corpus twice (by its digest) is refused. Single documents are not compared: one that trains in
one part and is held out in another stays in both, unless `pretrain prepare` made the parts with the same
data.validation_fraction and data.validation_min_bytes=0, which put equal text on the same side.
"""

run = run_action


def add_options(parser: CommandParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = add_action(actions, "inspect", "show samples as text", _inspect)
    _path(inspect)
    inspect.add_argument("--split", choices=("train", "validation"), default="train", help="default train")
    inspect.add_argument("--first", type=whole_number, default=0, metavar="N", help="number of the first sample")
    inspect.add_argument("--samples", type=positive, default=3, metavar="N", help="how many, default 3")
    help_ = "show the samples in the order of a run with this run.seed; --first is a position in it"
    inspect.add_argument("--seed", type=whole_number, metavar="SEED", help=help_)
    _path(add_action(actions, "verify", "compare every file, offset and token with the manifest", _verify))
    _path(add_action(actions, "stats", "print the counts as JSON", _stats))
    _path(add_action(actions, "fetch", "download a dataset at a URL into this node's cache", _fetch))
    convert = add_action(actions, "convert", "convert to or from Megatron-LM's .bin and .idx", _convert, CONVERT_HELP)
    convert.add_argument("source", type=_local, metavar="SOURCE", help="prefix of .bin and .idx, or a prepared dataset")
    convert.add_argument("target", type=_local, metavar="TARGET", help="folder to make")
    convert.add_argument("--to", choices=("packed", "megatron"), required=True, help="what to make")
    add_overrides(convert, "--to packed: as for `pretrain prepare`")
    merge = add_action(actions, "merge", "join prepared datasets into one", _merge, MERGE_HELP)
    merge.add_argument("parts", type=_local, nargs="+", metavar="PART", help="folder of a prepared dataset")
    merge.add_argument("--into", type=_local, required=True, metavar="TARGET", help="folder to make")


def _local(text: str) -> Path:
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{redact_url(text)}: is a URL, but only local folders are accepted; copy inputs to a disk first, and "
            "copy the result from there"
        )
    return Path(text)


def _path(parser: CommandParser) -> None:
    parser.add_argument("path", metavar="PATH", help="folder of a prepared dataset, or its URL")
    help_ = "where and how a dataset at a URL is cached"
    parser.add_argument("overrides", nargs="*", default=[], metavar="data.cache.KEY=VALUE", help=help_)
    parser.override_prefixes = ("data.cache.",)


def _folder(given: argparse.Namespace) -> "DatasetFolder":
    from data_pipeline.stream.dataset_locations import open_folder
    from pretrain.config.checks import check_prepare
    from pretrain.config.errors import ConfigError
    from pretrain.config.load import load_run_config

    if others := [each for each in given.overrides if not each.startswith("data.cache.")]:
        raise ConfigError([f"{each}: only keys of data.cache can be set here" for each in others])
    config = load_run_config(given.overrides)
    check_prepare(config)
    return open_folder(given.path, config.data.cache)


def _fetch(given: argparse.Namespace) -> int:
    from data_pipeline.errors import DataError
    from data_pipeline.remote.folder import RemoteFolder
    from data_pipeline.stream.shard_prefetch import fetch_all

    folder = _folder(given)
    if not isinstance(folder, RemoteFolder):
        raise DataError(f"{folder}: is a local folder, so there is nothing to fetch", "fetch takes a URL")
    sys.stdout.write(f"{fetch_all(folder)}\n")
    return 0


def _inspect(given: argparse.Namespace) -> int:
    from data_pipeline.tools.inspect import inspect

    for text in inspect(_folder(given), given.split, given.first, given.samples, shuffled_by=given.seed):
        sys.stdout.write(f"{text}\n")
    return 0


def _verify(given: argparse.Namespace) -> int:
    from data_pipeline.tools.inspect import verify

    folder = _folder(given)
    faults = verify(folder)
    sys.stdout.write("".join(f"{fault}\n" for fault in faults) or f"{folder}: whole\n")
    return FAULTS_FOUND if faults else 0


def _stats(given: argparse.Namespace) -> int:
    from data_pipeline.tools.inspect import stats

    _print(stats(_folder(given)))
    return 0


def _convert(given: argparse.Namespace) -> int:
    from data_pipeline.tools import convert, inspect
    from pretrain.config.checks import check_prepare
    from pretrain.config.errors import ConfigError
    from pretrain.config.load import load_run_config

    if given.to == "megatron":
        if given.overrides:
            raise ConfigError([f"{given.overrides[0]}: --to megatron takes all it needs from the dataset's manifest"])
        _print(convert.to_megatron(given.source, given.target))
        return 0
    config = load_run_config(given.overrides)
    check_prepare(config)
    seq_length = config.model.seq_length
    convert.to_packed(given.source, given.target, config.data, config.tokenizer, seq_length=seq_length)
    _print(inspect.stats(given.target))
    return 0


def _merge(given: argparse.Namespace) -> int:
    from data_pipeline.tools import inspect, merge

    merge.merge(given.parts, given.into)
    _print(inspect.stats(given.into))
    return 0


def _print(figures: object) -> None:
    sys.stdout.write(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")

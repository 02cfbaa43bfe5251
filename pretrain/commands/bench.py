"""The options of `pretrain bench`: one model, a suite of them, or two results compared."""

import argparse
import sys
from pathlib import Path

from pretrain.commands.arguments import positive, positive_number
from pretrain.config.errors import ConfigError
from pretrain.config.redact import public_words

NONE_WORKED = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--warmup", type=positive, metavar="N", help="steps before the timer runs; default: 20")
    parser.add_argument("--steps", type=positive, metavar="N", help="steps that are timed; default: 50")
    help_ = "folder of the result, which must not be there yet; default: bench/MODEL, or bench/MODEL-2 ..."
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=help_)
    help_ = "measure on pseudo-random tokens of so many pieces; default: on data.path, where that is not prepared 50257"
    parser.add_argument("--vocab-size", type=positive, metavar="N", help=help_)
    help_ = "of a suite these rows only, by their names in its table or patterns like '*-fast'; several by commas"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=help_)
    help_ = "of a suite each row that takes longer is killed, and the next one begun"
    parser.add_argument("--row-minutes", type=positive_number, metavar="M", help=help_)


def run(given: argparse.Namespace) -> int:
    words = list(given.overrides)
    if words[:1] == ["compare"]:
        return _compare(words[1:])
    from pretrain.bench.measure import Wanted

    options = {name: getattr(given, name) for name in ("warmup", "steps", "out", "vocab_size")}
    wanted = Wanted(
        **{name: value for name, value in options.items() if value is not None},
        command=["pretrain", *public_words(sys.argv[1:])],
    )
    suites = [word.partition("=")[2] for word in words if word.startswith("suite=")]
    if suites:
        from pretrain.bench.suite import run_suite

        table, worked = run_suite(
            suites[-1],
            [word for word in words if not word.startswith("suite=")],
            wanted,
            only=[name for names in given.only for name in names.split(",")],
            row_minutes=given.row_minutes,
        )
        sys.stdout.write(table)
        return 0 if worked else NONE_WORKED
    if given.only or given.row_minutes is not None:
        raise ConfigError(["--only and --row-minutes are for suite=NAME, whose rows they are about"])
    from pretrain.bench.measure import bench
    from pretrain.bench.table import as_table
    from pretrain.config.load import load_run_config

    measured = bench(load_run_config(words), wanted)
    if measured is not None:
        folder, result = measured
        sys.stdout.write(as_table(result) + f"saved in {folder}\n")
    return 0


def _compare(words: list[str]) -> int:
    if len(words) != 2:
        raise ConfigError(
            [f"compare {' '.join(words)}: takes two results, as in `pretrain bench compare A.json B.json`"]
        )
    from pretrain.bench.compare import compare

    sys.stdout.write(compare(Path(words[0]), Path(words[1])))
    return 0

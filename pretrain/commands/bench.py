"""The options of `pretrain bench`: one model, a suite of them, or two results compared."""

import argparse
import sys
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.commands.arguments import CommandParser, add_overrides, positive, positive_number

NONE_WORKED = 1

HELP = """
Takes training steps of the configured model, with its loader, optimizer and clipping, on the GPU or CPU of this
machine. Prints and saves (bench/MODEL/: bench.json, table.txt, plot.png, trace.json.gz) tokens/s, MFU against the
chip's peak and against the matrix products measured in the same run, peak memory, and the parts of a step beside the
time that they would take at the measured limits. If data.path is not prepared, it reads pseudo-random tokens. suite=
measures several models, each in a process of its own; compare prints two results side by side. --record measures the
machine itself, for `pretrain plan` and cluster.hardware: products, attention, memory, the host, and under torchrun the
links between ranks; minutes on one process.

examples:
  pretrain bench model=gpt3_1.3b engine=zero0_bf16 train.micro_batch_size=8
  pretrain bench suite=single_gpu
  pretrain bench suite=single_gpu --only 'gpt3_1.3b*' --row-minutes 5
  pretrain bench suite=tiny --warmup 2 --steps 5
  pretrain bench compare bench/tiny/bench.json bench/tiny-2/bench.json
  pretrain bench --record mine.yaml
  torchrun --nproc-per-node 8 -m pretrain bench --record mine.yaml
"""


def add_options(parser: CommandParser) -> None:
    parser.add_argument("--warmup", type=positive, metavar="N", help="steps before the timer runs; default: 20")
    parser.add_argument("--steps", type=positive, metavar="N", help="steps that are timed; default: 50")
    help_ = "folder of the result, which must not exist; default: bench/MODEL, or bench/MODEL-2 ..."
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=help_)
    help_ = "read pseudo-random tokens of a vocabulary of N; default: read data.path, or 50257 if that is not prepared"
    parser.add_argument("--vocab-size", type=positive, metavar="N", help=help_)
    help_ = "with suite=: only the rows of these names, or of patterns like '*-fast', separated by commas"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=help_)
    help_ = "with suite=: kill a row that takes longer, and continue with the next one"
    parser.add_argument("--row-minutes", type=positive_number, metavar="M", help=help_)
    help_ = "measure this machine and write the record that cluster.hardware=FILE and `pretrain plan` read"
    parser.add_argument("--record", type=Path, metavar="FILE", help=help_)
    add_overrides(parser)


def run(given: argparse.Namespace) -> int:
    overrides = list(given.overrides)
    if given.record is not None:
        return _record(given, overrides)
    if overrides[:1] == ["compare"]:
        return _compare(overrides[1:])
    from pretrain.bench.measure import BenchOptions
    from pretrain.config.redact import public_words

    options = {name: getattr(given, name) for name in ("warmup", "steps", "out", "vocab_size")}
    wanted = BenchOptions(
        **{name: value for name, value in options.items() if value is not None},
        command=["pretrain", *public_words(sys.argv[1:])],
    )
    suites = [each.partition("=")[2] for each in overrides if each.startswith("suite=")]
    if suites:
        from pretrain.bench.suite import run_suite

        table, worked = run_suite(
            suites[-1],
            [each for each in overrides if not each.startswith("suite=")],
            wanted,
            only=[name for names in given.only for name in names.split(",")],
            row_minutes=given.row_minutes,
        )
        sys.stdout.write(table)
        return 0 if worked else NONE_WORKED
    if given.only or given.row_minutes is not None:
        raise UserError("--only and --row-minutes choose rows of a suite", "add suite=NAME")
    from pretrain.bench.measure import bench
    from pretrain.bench.table import as_table
    from pretrain.config.load import load_run_config

    measured = bench(load_run_config(overrides), wanted)
    if measured is not None:
        folder, result = measured
        sys.stdout.write(as_table(result) + f"saved in {folder}\n")
    return 0


def _record(given: argparse.Namespace, overrides: list[str]) -> int:
    others = {name: getattr(given, name) for name in ("warmup", "steps", "out", "vocab_size", "only", "row_minutes")}
    taken = [f"--{name.replace('_', '-')}" for name, value in others.items() if value not in (None, [])]
    taken += [each for each in overrides if each == "compare" or each.startswith("suite=")]
    if taken:
        raise UserError(f"--record measures a machine and no model: it does not go with {', '.join(taken)}")
    from pretrain.bench.record.record import record_machine
    from pretrain.bench.record.summary import summary
    from pretrain.config.load import load_run_config
    from pretrain.config.redact import public_words

    command = ["pretrain", *public_words(sys.argv[1:])]
    record = record_machine(load_run_config(overrides), given.record, overrides, command)
    if record is not None:
        sys.stdout.write(summary(record) + f"saved in {given.record}\n")
    return 0


def _compare(results: list[str]) -> int:
    from pretrain.bench.compare import compare

    if len(results) != 2:
        raise UserError(
            f"compare {' '.join(results)}: takes two results", "as in `pretrain bench compare A.json B.json`"
        )
    sys.stdout.write(compare(Path(results[0]), Path(results[1])))
    return 0

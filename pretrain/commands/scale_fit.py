"""`pretrain scale fit`, and the options that `predict` and `compare` share with it."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.commands.arguments import CommandParser, add_action, positive, positive_number, whole_number

if TYPE_CHECKING:
    from pretrain.scaling.laws.exclude import Rules
    from pretrain.scaling.laws.points import Points
    from pretrain.scaling.laws.read_table import Columns
    from pretrain.scaling.laws.study import Study

HELP = """
POINTS is a CSV file with a row for each run, or the folder of a ladder. Columns are found by their usual names: N
(parameters_without_embeddings, params, N, ...), tokens (tokens, D, ...) or flops (flops, C, ...), and the loss. Prints
the law L(N, D) = E + A / N^alpha + B / D^beta with 95 % intervals, which points were left out and why, a check that
leaves the largest runs out, the IsoFLOP exponent, and the envelope L(C). A parameter that the points do not determine
is marked `not identified`.

examples:
  pretrain scale fit ladders/tiny
  pretrain scale fit runs.csv --size-column 'Model Size' --flops-column 'Training FLOP' --leave-out-highest 5
"""


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "fit", "fit a scaling law to runs", run, HELP)
    add_points(parser, "points", "POINTS")
    add_rules(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write each point with its prediction")


def add_points(parser: CommandParser, name: str, shown: str) -> None:
    parser.add_argument(name, type=Path, metavar=shown, help="CSV file of runs, or the folder of a ladder")


def add_rules(parser: CommandParser) -> None:
    """Options that choose columns and points, and how the law is fitted."""
    columns = parser.add_argument_group("columns, if the table has other names")
    for role, about in _COLUMNS.items():
        columns.add_argument(f"--{role}-column", metavar="COLUMN", help=about)
    help_ = "only rows with this value; may be repeated"
    columns.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help=help_)
    rules = parser.add_argument_group("points to leave out (diverged runs always are)")
    rules.add_argument("--leave-out-highest", type=whole_number, default=0, metavar="N", help="the N highest losses")
    rules.add_argument("--min-tokens", type=positive_number, default=0.0, metavar="D", help="runs with fewer tokens")
    help_ = "runs with fewer steps than X times their warm-up, default 1; needs columns steps and warmup_steps"
    rules.add_argument("--min-warmups", type=positive_number, default=1.0, metavar="X", help=help_)
    help_ = "a name, or a pattern such as 'small-*'; may be repeated"
    rules.add_argument("--exclude", action="append", default=[], metavar="NAME", help=help_)
    fit = parser.add_argument_group("fit")
    help_ = "count over-estimated points X times, for ladders with badly tuned runs; default 1"
    fit.add_argument("--over-penalty", type=positive_number, default=1.0, metavar="X", help=help_)
    fit.add_argument("--draws", type=positive, default=1000, metavar="N", help="bootstrap refits, default 1000")
    fit.add_argument("--seed", type=whole_number, default=0, metavar="N", help="seed of the bootstrap, default 0")


_COLUMNS = {
    "size": "N, best without embeddings",
    "tokens": "D",
    "flops": "C; default 6 N D",
    "loss": "the loss",
    "name": "names of runs",
}


def run(given: argparse.Namespace) -> int:
    from pretrain.scaling.laws.study import facts_of
    from pretrain.scaling.laws.study_text import study_lines

    found = study_of(given, given.points)
    if given.csv:
        _write_csv(given.csv, found)
    if given.json:
        print_json(facts_of(found))
    else:
        print_lines(study_lines(found))
    return 0


def study_of(given: argparse.Namespace, path: Path) -> "Study":
    """The fits of the points in a file, by the options."""
    from pretrain.scaling.laws.study import study

    return study(points_at(given, path), rules_of(given), given.over_penalty, given.draws, given.seed)


def points_at(given: argparse.Namespace, path: Path) -> "Points":
    """All points of a CSV file or of a ladder's folder."""
    from data_pipeline.errors import UserError
    from pretrain.scaling.laws.read_table import read_points

    if path.is_dir():
        table = path / "points.csv"
        if not table.exists():
            raise UserError(f"{path}: holds no points.csv", f"`pretrain scale table {path}` writes it")
        path = table
    return read_points(path, columns_of(given))


def columns_of(given: argparse.Namespace) -> "Columns":
    from pretrain.commands.arguments import UsageError
    from pretrain.scaling.laws.read_table import Columns

    named = {role: getattr(given, f"{role}_column") for role in _COLUMNS}
    named["parameters"] = named.pop("size")
    where = {}
    for text in given.where:
        column, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--where {text}: has no =", "write --where COLUMN=VALUE")
        where[column] = value
    return Columns({role: column for role, column in named.items() if column}, where)


def rules_of(given: argparse.Namespace) -> "Rules":
    from pretrain.scaling.laws.exclude import Rules

    return Rules(given.leave_out_highest, given.min_tokens, given.min_warmups, tuple(given.exclude))


def print_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_json(values: Any) -> None:
    """JSON has no infinity and no NaN: they become null."""
    sys.stdout.write(json.dumps(_strict(values), indent=2, allow_nan=False) + "\n")


def _strict(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _strict(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_strict(value) for value in values]
    is_finite = not isinstance(values, float) or abs(values) < float("inf")
    return values if is_finite else None


def _write_csv(path: Path, found: "Study") -> None:
    from data_pipeline.storage.atomic_write import write_durably
    from pretrain.scaling.laws.study import csv_of

    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, csv_of(found).encode())

"""Points from a CSV file: the table of a ladder, or any other with columns for N, D or C, and loss."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.config.nearest import did_you_mean
from pretrain.scaling.laws.points import FLOPS_PER_TOKEN, BadPoints, Point, Points, cell_name

ALIASES: Mapping[str, Sequence[str]] = {
    "parameters": (
        *("parameters_without_embeddings", "params_no_embed", "non_embedding_parameters", "parameters", "params"),
        *("N", "model_size", "num_parameters"),
    ),
    "tokens": ("tokens", "D", "train_tokens", "training_tokens", "num_tokens"),
    "flops": ("flops", "C", "compute", "train_flops", "training_flop", "training_flops"),
    "loss": ("validation_loss", "val_loss", "loss", "L"),
    "name": ("name", "cell", "run", "exp_name", "id"),
    "steps": ("steps", "num_steps"),
    "warmup_steps": ("warmup_steps", "warm_up_steps"),
    "diverged": ("diverged", "is_diverged"),
    "role": ("role",),
    "seed": ("seed", "random_seed"),
    "tokenizer": ("tokenizer", "tokenizer_digest"),
    "validation": ("validation_set", "validation", "validation_digest", "val_set"),
}
"""The names that a column may have, preferred first. Case, spaces and dashes do not matter."""

BITS_PER_BYTE = ("bits_per_byte", "bpb")
YES = frozenset({"1", "true", "yes"})
TARGET = "target"
"""The role of a run that a ladder keeps out of its fits."""


@dataclass(frozen=True)
class Columns:
    """The columns that the user named; the others are found by their aliases."""

    named: Mapping[str, str] = field(default_factory=dict)
    """Role (a key of ALIASES) to column."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Only rows with these values: column to value."""


def read_points(path: Path, columns: Columns | None = None) -> Points:
    """The points of a CSV file; raises UserError if a column is missing or a cell is not a number."""
    rows, header = _read(path)
    return points_of_rows(rows, header, str(path), columns or Columns())


def points_of_rows(
    rows: Iterable[Mapping[str, str]], header: Sequence[str], source: str, columns: Columns | None = None
) -> Points:
    """The points of a table in memory; `source` names it in messages.

    A row without a loss is left out. N or D may be missing if C is there: C = 6 N D gives the other.
    """
    columns = columns or Columns()
    found = {role: _column(role, header, source, columns.named) for role in ALIASES}
    for role in ("parameters", "loss"):
        if found[role] is None:
            raise _missing(role, header, source)
    if found["tokens"] is None and found["flops"] is None:
        raise _missing("tokens", header, source)
    chosen = _where(rows, header, source, columns.where)
    scales = _one_scale(chosen, found, source)
    points = [_point(row, number, found, source) for number, row in chosen]
    size, loss = found["parameters"] or "", found["loss"] or ""
    return Points(tuple(point for point in points if point is not None), size, loss, scales)


def same_scale(base: Points, variant: Points) -> None:
    """Raise BadPoints if losses of two tables cannot be compared."""
    if (base.size, base.loss) != (variant.size, variant.loss):
        columns = f"{base.size} and {base.loss}, {variant.size} and {variant.loss}"
        raise BadPoints(
            f"base and variant have different columns: {columns}", "name them: --size-column, --loss-column"
        )
    for what, one, other in zip(("tokenizer", "validation set"), base.scales, variant.scales, strict=True):
        is_comparable = what == "tokenizer" and _plain(base.loss) in BITS_PER_BYTE
        if one and other and one != other and not is_comparable:
            hint = _BITS_HINT if what == "tokenizer" else "evaluate both on one validation set"
            raise BadPoints(f"base and variant differ in the {what}: {one} and {other}", hint)


def _read(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), list(reader.fieldnames or ())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file: {error}") from None
    if not rows:
        raise UserError(f"{path}: the table is empty", "the first line names the columns, the others are runs")
    return rows, header


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _column(role: str, header: Sequence[str], source: str, named: Mapping[str, str]) -> str | None:
    if role in named:
        if named[role] not in header:
            hint = did_you_mean(named[role], header) or f"its columns are {', '.join(header)}"
            raise UserError(f"{source}: has no column {named[role]!r}", hint)
        return named[role]
    by_name = {_plain(name): name for name in reversed(header)}
    return next((by_name[_plain(alias)] for alias in ALIASES[role] if _plain(alias) in by_name), None)


def _missing(role: str, header: Sequence[str], source: str) -> UserError:
    option = {"parameters": "--size-column", "tokens": "--tokens-column", "loss": "--loss-column"}[role]
    wanted = "tokens or FLOPs" if role == "tokens" else role
    return UserError(
        f"{source}: has no column for {wanted}", f"name it: {option} COLUMN", f"its columns are {', '.join(header)}"
    )


def _where(
    rows: Iterable[Mapping[str, str]], header: Sequence[str], source: str, where: Mapping[str, str]
) -> list[tuple[int, Mapping[str, str]]]:
    """The rows with the wanted values, each with its line in the file."""
    for column, value in where.items():
        if column not in header:
            hint = did_you_mean(column, header) or f"its columns are {', '.join(header)}"
            raise UserError(f"--where {column}={value}: {source} has no such column", hint)
    numbered = list(enumerate(rows, start=2))
    chosen = [(n, row) for n, row in numbered if all(row[column] == value for column, value in where.items())]
    if not chosen:
        wanted = ", ".join(f"{column}={value}" for column, value in where.items())
        raise UserError(f"{source}: no row has {wanted}")
    return chosen


def _one_scale(
    rows: Sequence[tuple[int, Mapping[str, str]]], found: Mapping[str, str | None], source: str
) -> tuple[str, str]:
    """The tokenizer and the validation set of all rows; losses of several are not on one scale."""
    loss = found["loss"] or ""
    scales = []
    for role, what in (("tokenizer", "tokenizers"), ("validation", "validation sets")):
        column = found[role]
        values = sorted({row[column] for _, row in rows if row[column]}) if column else []
        is_comparable = role == "tokenizer" and _plain(loss) in BITS_PER_BYTE
        if len(values) > 1 and not is_comparable:
            hints = [f"fit one of them: --where {column}={values[0]}"]
            hints += [_BITS_HINT] if role == "tokenizer" else []
            raise BadPoints(f"{source}: the losses are of {len(values)} {what}: {', '.join(values)}", *hints)
        scales.append(values[0] if len(values) == 1 else "")
    return scales[0], scales[1]


_BITS_HINT = "bits per byte compare across tokenizers: --loss-column bits_per_byte"


def _point(row: Mapping[str, str], number: int, found: Mapping[str, str | None], source: str) -> Point | None:
    def text(role: str) -> str:
        column = found[role]
        return (row[column] or "").strip() if column else ""

    def value(role: str) -> float:
        try:
            return float(text(role) or math.nan)
        except ValueError:
            raise UserError(f"{source}, line {number}: {found[role]} is {text(role)!r}, not a number") from None

    is_diverged = text("diverged").lower() in YES
    if not text("loss") and not is_diverged:
        return None
    parameters, tokens, flops = value("parameters"), value("tokens"), value("flops")
    if math.isnan(tokens):
        tokens = flops / FLOPS_PER_TOKEN / parameters if parameters else math.nan
    if math.isnan(flops):
        flops = FLOPS_PER_TOKEN * parameters * tokens
    return Point(
        text("name") or cell_name(parameters, tokens),
        parameters,
        tokens,
        flops,
        value("loss"),
        steps=value("steps"),
        warmup_steps=value("warmup_steps"),
        is_diverged=is_diverged,
        is_target=text("role") == TARGET,
        seed=text("seed"),
    )

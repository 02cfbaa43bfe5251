"""The table of a ladder: a row a cell, read from the records in the run folders.

Two groups of columns: results, which are equal bit for bit whenever and wherever the cells ran in one layout, and the
time that they took.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.load import read_run_config
from pretrain.run.attempts import read_attempts
from pretrain.run.config_history import CONFIG_FILE
from pretrain.run.outcome import read_outcome
from pretrain.scaling.ladder.cells import Cell
from pretrain.tracking.metrics_file import REPLACED_FILE, read_metrics, records_in
from pretrain.tracking.provenance import DESCRIPTION_FILE
from pretrain.tracking.series import Records, of_kind, validation_curves, values_of

SMOOTHED_OVER = 3
"""Validations at the interval that the smoothed loss is the mean of."""

RESULTS = (
    *("cell", "size", "role", "parameters_without_embeddings", "parameters", "tokens", "steps", "warmup_steps"),
    *("global_batch_size", "lr", "validation_loss", "smoothed_validation_loss", "bits_per_byte", "train_loss"),
    *("diverged", "tokenizer", "validation_set", "seed"),
)
TIMES = ("state", "step", "mfu", "tokens_per_second", "gpu_hours", "repeated_gpu_hours", "restarts")
POINTS = (
    *("name", "role", "parameters_without_embeddings", "parameters", "tokens", "steps", "warmup_steps"),
    *("validation_loss", "bits_per_byte", "diverged", "tokenizer", "validation_set", "seed"),
)
"""Columns of points.csv, which `pretrain scale fit` reads. It keeps targets out of the fit."""


@dataclass(frozen=True)
class Row:
    """One cell: the planned run, and what its records say."""

    cell: Cell
    values: Mapping[str, Any]
    """By the names in RESULTS and TIMES; None where there is no record yet."""

    @property
    def is_complete(self) -> bool:
        return self.values["state"] == "finished"

    @property
    def gpu_hours(self) -> float:
        """Hours of all ranks together, repeated steps included."""
        return sum(self.values[name] or 0.0 for name in ("gpu_hours", "repeated_gpu_hours"))


def table_of(cells: Iterable[Cell]) -> list[Row]:
    """The row of each cell. It reads metrics.jsonl and the descriptions beside it, and asks no other service."""
    return [_row(cell) for cell in cells]


def _row(cell: Cell) -> Row:
    folder = Path(cell.run_dir)
    records = read_metrics(folder)
    train, validations = of_kind(records, "train"), of_kind(records, "validation")
    outcome = read_outcome(folder)
    state = "not started" if outcome is None else {"training": "running or killed"}.get(outcome.state, outcome.state)
    final = validations[-1] if validations and state == "finished" else {}
    is_diverged = _is_diverged(folder, train)
    replaced = list(records_in(folder / REPLACED_FILE))
    description = _description(folder)
    ranks = description.get("layout", {}).get("world_size", 1)
    return Row(
        cell,
        {
            "cell": cell.name,
            "size": cell.size,
            "role": "target" if cell.is_target else "fit",
            "parameters_without_embeddings": cell.parameters_without_embeddings,
            "parameters": cell.parameters,
            "tokens": cell.tokens,
            "steps": cell.steps,
            "warmup_steps": _warmup(cell),
            "global_batch_size": cell.batch,
            "lr": cell.lr,
            "validation_loss": final.get("loss"),
            "smoothed_validation_loss": _smoothed(records) if final else None,
            "bits_per_byte": final.get("bits_per_byte"),
            "train_loss": train[-1].get("loss") if train and final else None,
            "diverged": is_diverged,
            "tokenizer": description.get("data", {}).get("tokenizer_fingerprint"),
            "validation_set": _validation_set(folder, description),
            "seed": cell.seed,
            "state": "diverged" if is_diverged and not final else state,
            "step": train[-1]["step"] if train else None,
            "mfu": _median(train, "mfu_6n_6lhs"),
            "tokens_per_second": _median(train, "tokens_per_second"),
            "gpu_hours": _hours(train, cell.branch_step, ranks),
            "repeated_gpu_hours": _hours(of_kind(replaced, "train"), None, ranks),
            "restarts": _restarts(folder, replaced),
        },
    )


def _smoothed(records: Records) -> float | None:
    """The mean of the last validations at the interval, all on as many samples."""
    curves = validation_curves(records)
    values = curves[0].loss[-SMOOTHED_OVER:] if curves else np.array([])
    return float(values.mean()) if len(values) else None


def _is_diverged(folder: Path, train: Records) -> bool:
    """Whether a step or the last loss was not finite, or an attempt ended because training diverged."""
    losses = values_of(train, "loss")
    bad = values_of(train, "bad_steps")
    ended = any(each.ended is not None and each.ended.diverged_at is not None for each in read_attempts(folder))
    return bool(len(train) and (not np.isfinite(losses).all() or np.nanmax(bad, initial=0) > 0)) or ended


def _median(train: Records, key: str) -> float | None:
    values = values_of(train, key)
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _hours(train: Records, first_step: int | None, ranks: int) -> float | None:
    """Hours of all ranks together that these steps took. A record covers the steps since the one before it.

    `first_step`: the step before the first record; None: each piece of the records begins with one step.
    """
    seconds, before = 0.0, first_step
    for record in train:
        step, took = record["step"], record.get("seconds_step")
        if before is None or step <= before:
            before = step - 1
        if isinstance(took, int | float) and math.isfinite(took):
            seconds += took * (step - before)
        before = step
    return seconds * ranks / 3600 if train else None


def _restarts(folder: Path, replaced: Records) -> int:
    """Starts after the first: by the record of attempts, else by the pieces of steps that were repeated."""
    attempts = len(read_attempts(folder)) - 1
    steps = [record["step"] for record in of_kind(replaced, "train")]
    pieces = bool(steps) + sum(after <= before for before, after in itertools.pairwise(steps))
    outcome = read_outcome(folder)
    is_resumed = outcome is not None and outcome.resumed != outcome.started
    return max(attempts, pieces, int(is_resumed))


def _warmup(cell: Cell) -> int:
    given = [word for word in cell.overrides if word.startswith("lr_schedule.warmup_steps=")]
    text = given[-1].partition("=")[2] if given else "null"
    return int(text) if text.isdecimal() else cell.steps // 20


def _description(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / DESCRIPTION_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _validation_set(folder: Path, description: Mapping[str, Any]) -> str | None:
    """The held-out text: the digest of the corpus, and the number of samples if not all of them count."""
    digest = description.get("data", {}).get("corpus_digest")
    if not digest:
        return None
    limit = read_run_config(folder / CONFIG_FILE).evaluation.final_max_samples
    return digest if limit is None else f"{digest}, {limit} samples"


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The rows as CSV; numbers have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_text(row[column]) for column in columns])
    return text.getvalue()


def points_csv(rows: Sequence[Row]) -> str:
    """The finished cells. A ladder that counts all parameters leaves out the column with fewer."""
    kept = [{"name": row.cell.name, **row.values} for row in rows if row.is_complete]
    counts_all = any(row.cell.counted == row.cell.parameters for row in rows)
    return as_csv(kept, [name for name in POINTS if not (counts_all and name == "parameters_without_embeddings")])


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)

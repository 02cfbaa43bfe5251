"""The files and the text of a ladder's table."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.storage.atomic_write import write_durably
from pretrain.scaling.ladder.plan import aligned
from pretrain.scaling.ladder.table import RESULTS, TIMES, Row, as_csv, points_csv
from pretrain.tracking.console import short_number
from pretrain.tracking.metrics_file import strict

TABLE_CSV, TABLE_JSON, POINTS_CSV = "table.csv", "table.json", "points.csv"
HEAD = (*("cell", "N", "D", "validation loss", "smoothed", "bits per byte", "MFU", "GPU-hours", "restarts", "state"),)


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Write table.csv (results and times), table.json and points.csv."""
    values = [row.values for row in rows]
    write_durably(folder / TABLE_CSV, as_csv(values, (*RESULTS, *TIMES)).encode())
    write_durably(folder / TABLE_JSON, rows_as_json(rows).encode())
    write_durably(folder / POINTS_CSV, points_csv(rows).encode())


def rows_as_json(rows: Sequence[Row]) -> str:
    """All rows; JSON has no NaN, which becomes text."""
    values = [{key: _strict(value) for key, value in row.values.items()} for row in rows]
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def table_text(rows: Sequence[Row]) -> str:
    """The table in aligned columns, flags in the last one."""
    return "".join(line + "\n" for line in aligned([list(HEAD), *map(table_row, rows)]))


def table_row(row: Row) -> list[str]:
    """Texts for HEAD."""
    values = row.values
    flags = [values["state"], *(["diverged"] if values["diverged"] and values["state"] != "diverged" else [])]
    if row.cell.is_target:
        flags.append("target")
    return [
        row.cell.name,
        short_number(row.cell.counted),
        short_number(row.cell.tokens),
        _rounded(values["validation_loss"]),
        _rounded(values["smoothed_validation_loss"]),
        _rounded(values["bits_per_byte"]),
        "-" if values["mfu"] is None else f"{values['mfu']:.1%}",
        "-" if values["gpu_hours"] is None else f"{row.gpu_hours:.4f}",
        str(values["restarts"] or "-"),
        ", ".join(flags),
    ]


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _strict(value: Any) -> Any:
    return strict(value) if isinstance(value, float) and not math.isfinite(value) else value

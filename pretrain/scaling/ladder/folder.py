"""The folder of a ladder, ladders/NAME: ladder.json lists its cells, runs/CELL are their run folders."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.errors import RunError
from pretrain.run.sweep import as_shown
from pretrain.scaling.ladder.cells import LADDERS, Cell

LADDER_FILE = "ladder.json"


def folder_of(name: str) -> Path:
    return Path(LADDERS) / name


def find_ladder(given: str) -> Path:
    """The folder of a ladder, by its path, its name, or its ladder file; raises RunError if it was never started."""
    for folder in (Path(given), folder_of(given)):
        if (folder / LADDER_FILE).exists():
            return folder
    path = Path(given)
    if path.is_dir():
        raise RunError(
            f"{path}: not the folder of a ladder: it has no {LADDER_FILE}", "give a ladder folder, such as ladders/NAME"
        )
    from pretrain.scaling.ladder.spec import read_spec

    name = read_spec(given).name
    folder = folder_of(name)
    if not (folder / LADDER_FILE).exists():
        raise RunError(f"{folder}: this ladder was not started", f"pretrain scale submit {given}")
    return folder


def read_ladder(folder: Path) -> list[Cell]:
    """The cells of a ladder; raises RunError if its record is damaged."""
    path = folder / LADDER_FILE
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        return [Cell(**{**cell, "overrides": tuple(cell["overrides"])}) for cell in values["cells"]]
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}: not a valid record of a ladder", "restore it, or start the ladder again") from None


def write_ladder(folder: Path, cells: Sequence[Cell]) -> None:
    content = {"name": folder.name, "cells": [asdict(cell) for cell in cells]}
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / LADDER_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def joined(folder: Path, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of the folder with the new ones added at their end, so that each keeps its number.

    Raises UserError if the folder is not a ladder's, or is that of another ladder: a cell has other settings there.
    """
    if not (folder / LADDER_FILE).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder}: exists and is not the folder of a ladder", "choose another name in the file")
        return list(cells)
    there = {cell.name: cell for cell in read_ladder(folder)}
    for cell in cells:
        before = there.get(cell.name)
        if before is not None and before.overrides != cell.overrides:
            old, new = (as_shown(_without(one, other)) for one, other in ((before, cell), (cell, before)))
            raise UserError(
                f"{folder}: is the folder of another ladder: its cell {cell.name} has {old or 'fewer settings'}, "
                f"this file gives {new or 'fewer settings'}",
                "choose another name in the file, or restore the file as it was; new cells may be added to it",
            )
    now = {cell.name for cell in cells}
    removed = [name for name in there if name not in now]
    if removed and not now & there.keys():
        raise UserError(
            f"{folder}: is the folder of another ladder: it has no cell of this file", "choose another name"
        )
    return [*there.values(), *(cell for cell in cells if cell.name not in there)]


def _without(cell: Cell, other: Cell) -> list[str]:
    return [word for word in cell.overrides if word not in other.overrides]

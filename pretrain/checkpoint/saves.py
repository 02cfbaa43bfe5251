"""saves.jsonl in the run folder: which checkpoints were completed, so that missing ones are noticed."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_durably

SAVES_FILE = "saves.jsonl"

log = logging.getLogger(__name__)


def record_save(run_dir: Path, step: int, folder: Path) -> None:
    """Add a line for a complete checkpoint; a disk that does not take it costs the line and not the save."""
    try:
        inside = folder.is_relative_to(run_dir)
        _add(run_dir, {"step": step, "folder": str(folder.relative_to(run_dir) if inside else folder.absolute())})
    except OSError as error:
        log.warning("%s: the save of step %d is not recorded: %s", run_dir / SAVES_FILE, step, error.strerror or error)


def record_restart(run_dir: Path) -> None:
    """Add a line after which the run has no checkpoint: it begins again at step 0."""
    _add(run_dir, {"restart": True})


def last_save(run_dir: Path) -> Mapping[str, Any] | None:
    """Step, folder and time of the newest save since the run began; None: no checkpoint was ever completed.

    A folder inside the run's is relative to that, which may have been moved.
    """
    last = None
    for line in _lines(run_dir / SAVES_FILE):
        try:
            record = json.loads(line)
            last = None if record.get("restart") else {key: record[key] for key in ("step", "folder", "time")}
        except (ValueError, KeyError, AttributeError, RecursionError):
            continue  # torn by a crash or damaged
    return last


def _add(run_dir: Path, values: Mapping[str, Any]) -> None:
    path = run_dir / SAVES_FILE
    line = json.dumps({**values, "time": round(time.time(), 3)}).encode()
    write_durably(path, b"".join(each + b"\n" for each in (*_lines(path), line)))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []

"""saves.jsonl in the run folder: the checkpoints that were completed, so that missing ones are noticed."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.storage.atomic_write import write_durably

SAVES_FILE = "saves.jsonl"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Save:
    """A checkpoint that was completed."""

    step: int
    folder: Path
    in_run_folder: bool
    """False: on a node's own disk."""
    time: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        return f"step {self.step} was saved in {self.folder} at {when} and is not there now"


def record_save(run_dir: Path, step: int, folder: Path) -> None:
    """Add a line for a complete checkpoint; if the disk refuses it, only the line is lost."""
    inside = folder.is_relative_to(run_dir)
    try:
        _add(run_dir, {"step": step, "folder": str(folder.relative_to(run_dir) if inside else folder.absolute())})
    except OSError as error:
        log.warning("%s: the save of step %d is not recorded: %s", run_dir / SAVES_FILE, step, error.strerror or error)


def record_restart(run_dir: Path) -> None:
    """Add a line after which the run has no checkpoint: it restarts at step 0."""
    _add(run_dir, {"restart": True})


def last_save(run_dir: Path) -> Save | None:
    """The newest save in the run folder since the last restart; else the newest on a node's disk, or None."""
    found: dict[bool, Save] = {}
    for line in _lines(run_dir / SAVES_FILE):
        try:
            record = json.loads(line)
            if record.get("restart"):
                found = {}
                continue
            inside = not Path(record["folder"]).is_absolute()  # relative, as a run folder may be moved
            found[inside] = Save(int(record["step"]), run_dir / record["folder"], inside, float(record["time"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # torn by a crash or damaged
    return found.get(True) or found.get(False)


def _add(run_dir: Path, values: Mapping[str, Any]) -> None:
    path = run_dir / SAVES_FILE
    line = json.dumps({**values, "time": round(time.time(), 3)}).encode()
    write_durably(path, b"".join(each + b"\n" for each in (*_lines(path), line)))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []

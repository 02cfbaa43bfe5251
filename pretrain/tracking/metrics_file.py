"""metrics.jsonl: the record that every run writes, one strict JSON object per line."""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from data_pipeline.storage.atomic_write import write_durably
from pretrain.run.outcome import read_outcome

Kind = Literal["train", "validation", "length"]
"""length: train.max_minutes shortened the run, which ends after this step."""
Values = Mapping[str, float | int | str]

METRICS_FILE = "metrics.jsonl"
REPLACED_FILE = "metrics.replaced.jsonl"
"""Records of steps that a later attempt repeats, in the order in which they were replaced."""
TAIL = 256 * 1024
"""Bytes: some hundred records."""

_logger = logging.getLogger(__name__)
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class JsonlSink:
    """Appends `{"kind", "step", "time", ...}` lines to metrics.jsonl; each has been written before `log` returns.

    Lines of steps after `resume_step` move to metrics.replaced.jsonl.
    """

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        self._path = run_dir / METRICS_FILE
        _set_aside_lines_after(self._path, resume_step)
        # Unbuffered, so that every failed write raises an error here.
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""
        self._failing = False

    def log(self, kind: Kind, step: int, values: Values) -> None:
        record: dict[str, float | int | str] = {"kind": kind, "step": step, "time": round(time.time(), 3)}
        record |= {name: strict(value) for name, value in values.items()}
        self._waiting += json.dumps(record, allow_nan=False).encode() + b"\n"
        self._write()

    def close(self, outcome: str) -> None:
        self._write()
        self._file.close()

    def _write(self) -> None:
        """Lines that do not fit on the disk are kept in memory and written with a later one."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(self._waiting) != len(self._waiting):
                raise OSError("only part of a line could be written")
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            if not self._failing:
                _logger.warning(
                    "%s: %s; training continues, and its metrics are kept in memory until there is space",
                    self._path,
                    error,
                )
            self._failing = True
        else:
            self._waiting = b""
            self._failing = False


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run in file order, "nan" and "inf" as floats again; the last one of each kind and step.

    An incomplete line, as while another process writes, is skipped; without a file the list is empty.
    """
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for record in all_records(run_dir):
        key = (record["kind"], record["step"])
        records.pop(key, None)
        records[key] = record
    return list(records.values())


def all_records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Like `read_metrics`, but with all records of a kind and step."""
    return records_in(run_dir / METRICS_FILE)


def records_of_all_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """Like `all_records`, and for steps that metrics.jsonl lacks the last record of an earlier attempt.

    An attempt that ends early has not repeated all the steps that the previous attempt had recorded. If a later attempt
    diverged from it, by its batches or learning rates, the older steps after that point no longer belong to the run.
    The same holds for everything recorded before the run restarted at step 0.
    """
    outcome = read_outcome(run_dir)
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def take(record: dict[str, Any]) -> None:
        nonlocal known
        key = record["kind"], record["step"]
        before = known.get(key, {})
        if any(name in before and before[name] != record.get(name) for name in ("batch_hash", "lr")):
            known = {(kind, step): other for (kind, step), other in known.items() if step < record["step"]}
        known[key] = record

    for record in records_in(run_dir / REPLACED_FILE):
        if outcome is not None and record["time"] >= outcome.started:
            take(record)
    recorded = list(all_records(run_dir))
    if known:
        for record in recorded:
            take(record)
    there = {(record["kind"], record["step"]) for record in recorded}
    return [*recorded, *(record for key, record in known.items() if key not in there)]


def records_in(path: Path) -> Iterator[dict[str, Any]]:
    """The records of one file in its order; none without the file."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        record = _parse(line)
        if record is not None:
            yield record


def latest_records(run_dir: Path, kind: Kind, count: int) -> list[dict[str, Any]]:
    """The last `count` records of a kind, oldest first, as far as they are in the last TAIL bytes of the file."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        # A line that begins before the part read is not parsed as a record.
        records = [record for record in map(_parse, file.read().splitlines()) if record and record["kind"] == kind]
    return records[-count:]


def last_step(run_dir: Path) -> int:
    """The last training record; 0 without one."""
    records = latest_records(run_dir, "train", 1)
    return int(records[-1]["step"]) if records else 0


def _set_aside_lines_after(path: Path, resume_step: int) -> None:
    """Keep whole lines of steps that the resumed state has seen; a run that starts at step 0 has seen none. All others
    are added to REPLACED_FILE first."""
    if not path.exists():
        return
    kept: list[bytes] = []
    replaced: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        record = _parse(line) if line.endswith(b"\n") else None
        is_seen = record is not None and resume_step > 0 and record["step"] <= resume_step
        (kept if is_seen else replaced).append(line)
    if not replaced:
        return
    with path.with_name(REPLACED_FILE).open("ab") as file:
        file.write(b"".join(line.rstrip(b"\n") + b"\n" for line in replaced))
        file.flush()
        os.fsync(file.fileno())
    write_durably(path, b"".join(kept))
    if resume_step == 0:
        _logger.info("%d records of an earlier start are in %s now", len(replaced), path.with_name(REPLACED_FILE))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    wanted: dict[str, Any] = {"kind": str, "step": int, "time": int | float}
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in wanted.items()):
        return None
    return {name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in record.items()}


def strict(value: float | int | str) -> float | int | str:
    """JSON has no NaN and no infinity: they become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, int | str):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)

"""attempts.jsonl in a run's folder: when each attempt (one start of the training step) began, and how it ended."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.exit_codes import Outcome
from pretrain.outcome.failure import FailureKind
from pretrain.outcome.record import OUTCOME_FILE

ATTEMPTS_FILE = "attempts.jsonl"


@dataclass(frozen=True)
class Began:
    """The start of an attempt."""

    time: float
    job: str | None
    """Slurm's id of the job; None: no Slurm."""
    restart: int
    """How often Slurm had requeued the job."""
    nodes: tuple[str, ...]
    ranks: int
    step: int
    """The last one that was recorded before."""
    log_start: int | None = None
    """The size of the job's log at this time, in bytes: what Slurm wrote before is about earlier attempts."""


@dataclass(frozen=True)
class Ended:
    """The end of an attempt."""

    time: float
    outcome: Outcome
    exit_code: int | None
    cause: str
    """One sentence for people."""
    step: int
    node: str | None = None
    """The node that may have caused the failure."""
    kind: FailureKind | None = None
    """The kind of failure that the ranks reported; None if they did not."""
    diverged_at: int | None = None
    """The step that went bad, if training diverged: `step` may be an earlier one, as not every step is recorded."""


@dataclass(frozen=True)
class Attempt:
    """The records of one attempt. Either may be missing: it was killed before it was written, or still runs."""

    number: int
    began: Began | None = None
    ended: Ended | None = None


def began(
    run_dir: Path,
    attempt: int,
    *,
    job: str | None,
    restart: int,
    nodes: Sequence[str],
    ranks: int,
    step: int,
    log_start: int | None = None,
) -> None:
    """Record that an attempt starts."""
    facts = {"job": job, "restart": restart, "nodes": list(nodes), "ranks": ranks, "step": step}
    _append(run_dir, attempt, "began", facts | _known(log_start=log_start))


def ended(
    run_dir: Path,
    attempt: int,
    *,
    outcome: Outcome,
    exit_code: int | None,
    cause: str,
    step: int,
    node: str | None = None,
    kind: FailureKind | None = None,
    diverged_at: int | None = None,
) -> None:
    """Record how an attempt ended."""
    facts = {"outcome": outcome, "exit_code": exit_code, "cause": " ".join(cause.split()), "step": step}
    _append(run_dir, attempt, "ended", facts | _known(node=node, kind=kind, diverged_at=diverged_at))


def read_attempts(run_dir: Path) -> list[Attempt]:
    """All attempts, ordered by number. A line that a kill cut short, or that is not about an attempt, is left out."""
    path = run_dir / ATTEMPTS_FILE
    found: dict[int, Attempt] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
            number, event = int(values.pop("attempt")), values.pop("event")
            before = found.get(number, Attempt(number))
            if event == "began":
                values["nodes"] = tuple(values["nodes"])
                found[number] = Attempt(number, Began(**values), before.ended)
            elif event == "ended":
                if "kind" in values:
                    values["kind"] = FailureKind(values["kind"])
                found[number] = Attempt(number, before.began, Ended(**values))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return [found[number] for number in sorted(found)]


def next_attempt(run_dir: Path) -> int:
    """The number of an attempt that starts now; the first is 1. Attempts that only left a folder of logs count too."""
    logs = (run_dir / "logs").glob("attempt-*")
    with_logs = [int(path.name.removeprefix("attempt-")) for path in logs if path.name[len("attempt-") :].isdigit()]
    return max([*with_logs, *(attempt.number for attempt in read_attempts(run_dir))], default=0) + 1


def log_folder(run_dir: Path, attempt: int) -> Path:
    """The folder with the output of an attempt's ranks, one file each, and their record of how it ended."""
    return run_dir / "logs" / f"attempt-{attempt:04d}"


def log_name(node: str, rank: int) -> str:
    """The file of one rank in that folder."""
    return f"{node}-rank-{rank:05d}.log"


def outcome_file(run_dir: Path, attempt: int) -> Path:
    """The record of the attempt's ranks on how it ended (pretrain.outcome.record)."""
    return log_folder(run_dir, attempt) / OUTCOME_FILE


def _known(**facts: object) -> dict[str, object]:
    """The facts that have a value."""
    return {name: value for name, value in facts.items() if value is not None}


def _append(run_dir: Path, attempt: int, event: str, facts: dict[str, Any]) -> None:
    """Write a line at the end of the file, on the disk on return. A line that a kill cut short is ended first."""
    run_dir.mkdir(parents=True, exist_ok=True)
    line = {"attempt": attempt, "event": event, "time": round(time.time(), 3), **facts}
    path = run_dir / ATTEMPTS_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * is_torn + json.dumps(line, ensure_ascii=False).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

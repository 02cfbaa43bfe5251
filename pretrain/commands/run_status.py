"""The status of a run, from its folder and from what squeue reports of its jobs. Needs no torch, changes nothing."""

import contextlib
import glob
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pretrain.checkpoint.inventory import find_all, next_resume
from pretrain.config.derived import tokens_per_step
from pretrain.config.errors import ConfigError, RunError
from pretrain.config.load import read_run_config
from pretrain.run.attempts import ATTEMPTS_FILE, Attempt, read_attempts
from pretrain.run.config_history import CONFIG_FILE
from pretrain.run.length import RunLength
from pretrain.run.lock import lock_holder
from pretrain.run.state import RunState
from pretrain.slurm_client import QueuedJob, own_jobs
from pretrain.tracking.metrics_file import METRICS_FILE, latest_records
from pretrain.tracking.provenance import DESCRIPTION_FILE

PACE_RECORDS = 50
"""The time left is computed from so many of the last records."""


@dataclass(frozen=True)
class Status:
    """One run; None: not known."""

    run: str
    state: str
    """running, finished; pending and other states of its Slurm job; else how the last attempt ended."""
    holder: str | None
    """The live process that holds the run folder."""
    jobs: Sequence[str]
    """Slurm's ids, oldest first, with the state of those that it still knows."""
    attempts: int
    restarts: int
    """Attempts after the first one."""
    step: int | None
    steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_to_go: float | None
    """None unless the run is live."""
    seconds_since_record: float | None
    checkpoint: str | None
    """The newest whole one, by the sizes of its files."""
    ended: str | None
    """How and why the last finished attempt ended."""


def find_runs(folder: Path) -> list[Path]:
    """The run folders in `folder`, and those of sweeps one level below."""
    found = {
        (folder / path).parent
        for name in (CONFIG_FILE, ATTEMPTS_FILE, METRICS_FILE)
        for pattern in (f"*/{name}", f"*/*/{name}")
        # Path.glob raises if a folder is deleted meanwhile.
        for path in glob.iglob(pattern, root_dir=folder, include_hidden=True)  # noqa: PTH207
    }
    return sorted(path for path in found if path.parent not in found)


def status_of(run_dir: Path, jobs: Mapping[str, QueuedJob], now: float) -> Status:
    """Read one run; raises RunError if the folder is not the folder of a run."""
    if not any((run_dir / name).exists() for name in (CONFIG_FILE, ATTEMPTS_FILE, METRICS_FILE)):
        raise RunError(
            f"{run_dir}: not the folder of a run: it has no {CONFIG_FILE}", "give a run folder, such as runs/NAME"
        )
    attempts, held_by = read_attempts(run_dir), lock_holder(run_dir)
    records = latest_records(run_dir, "train", PACE_RECORDS)
    last = records[-1] if records else {}
    steps = _total(run_dir, last)
    found = next_resume(find_all(run_dir)) if (run_dir / "checkpoints").is_dir() else None
    ids = list(dict.fromkeys(each.began.job for each in attempts if each.began and each.began.job))
    state = _state(held_by is not None, attempts, [jobs[id_] for id_ in ids if id_ in jobs], last.get("step"), steps)
    return Status(
        run=str(run_dir),
        state=state,
        holder=held_by,
        jobs=[_job_text(id_, jobs.get(id_)) for id_ in ids],
        attempts=len(attempts),
        restarts=max(0, len(attempts) - 1),
        step=last.get("step"),
        steps=steps,
        loss=_number(last.get("loss")),
        tokens_per_second=_number(last.get("tokens_per_second")),
        seconds_to_go=_with_final_validation(run_dir, _to_go(records, steps)) if held_by is not None else None,
        seconds_since_record=max(0.0, now - last["time"]) if last else None,
        checkpoint=found.folder.name if found else None,
        ended=_last_end(attempts),
    )


def _state(
    is_held: bool, attempts: Sequence[Attempt], jobs: Sequence[QueuedJob], step: int | None, steps: int | None
) -> str:
    if is_held:
        return "running"
    if jobs and jobs[-1].state != "completed":
        return {"running": "starting"}.get(jobs[-1].state, jobs[-1].state)
    last = attempts[-1] if attempts else None
    if last is not None and last.ended is not None:
        return last.ended.outcome
    if step is not None and step == steps:
        return "finished"
    # It was killed together with its launcher, or started without one: no process could record how it ended.
    return "ended" if step is not None or last is not None else "not started"


def _last_end(attempts: Sequence[Attempt]) -> str | None:
    for attempt in reversed(attempts):
        if attempt.ended is not None:
            ended = attempt.ended
            return f"attempt {attempt.number} {ended.outcome} after step {ended.step}: {ended.cause}"
    return None


def _job_text(id_: str, job: QueuedJob | None) -> str:
    if job is None:
        return id_
    return f"{id_} ({job.state}{f': {job.reason}' if job.reason else ''})"


def _total(run_dir: Path, last: Mapping[str, Any]) -> int | None:
    """The last step of the run, computed at its last record."""
    with contextlib.suppress(ConfigError):
        config = read_run_config(run_dir / CONFIG_FILE)
        step = last.get("step", 0)
        tokens = last.get("tokens", step * tokens_per_step(config))
        cut_tokens, cut_minutes = last.get("cut_tokens"), last.get("cut_minutes")
        state = RunState(step=step, tokens=tokens, cut_tokens=cut_tokens, cut_minutes=cut_minutes)
        return RunLength.of(config).end_step(state)
    return None


def _to_go(records: Sequence[Mapping[str, float]], steps: int | None) -> float | None:
    """Seconds left at the pace of the last records, which includes validation and saving but no pause or restart."""
    if steps is None or not records:
        return None
    last = records[-1]
    gaps = sorted(
        (b["time"] - a["time"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(records)
        if b["step"] > a["step"] and b["time"] > a["time"]  # a clock may be set back
    )
    # A pause between attempts is one gap among many, so the longest gap is left out of the mean.
    kept = gaps[:-1] or gaps
    if kept:
        return (steps - last["step"]) * sum(kept) / len(kept)
    seconds = _number(last.get("seconds_step"))
    return None if seconds is None else (steps - last["step"]) * seconds


def _with_final_validation(run_dir: Path, seconds: float | None) -> float | None:
    """The time left including the final validation, at the pace of the last validation if there was one."""
    validations = latest_records(run_dir, "validation", 1)
    if seconds is None or not validations:
        return seconds
    took, samples = _number(validations[-1].get("seconds")), _number(validations[-1].get("samples"))
    final = _number(_description(run_dir).get("final_validation_samples"))
    return seconds + final * took / samples if took and samples and final else seconds


def _description(run_dir: Path) -> Mapping[str, Any]:
    """The data section of description.json; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((run_dir / DESCRIPTION_FILE).read_bytes())["data"]
        return found if isinstance(found, dict) else {}
    return {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _readable_or_not(folder: Path, jobs: Mapping[str, QueuedJob], now: float) -> Status:
    """A run that cannot be read does not hide the others."""
    try:
        return status_of(folder, jobs, now)
    except OSError as error:
        nothing: dict[str, Any] = {field.name: None for field in fields(Status)}
        known = {
            "run": str(folder),
            "state": f"unreadable ({error.strerror})",
            "jobs": [],
            "attempts": 0,
            "restarts": 0,
        }
        return Status(**(nothing | known))


def all_statuses(folders: Sequence[Path]) -> tuple[list[Status], list[QueuedJob]]:
    """The status of the given runs, and this user's jobs that have no attempt of these runs yet."""
    jobs = own_jobs()
    now = time.time()
    found = [_readable_or_not(folder, jobs, now) for folder in folders]
    started = {id_.partition(" ")[0] for each in found for id_ in each.jobs}
    waiting = {job.id: job for id_, job in jobs.items() if id_ not in started and job.id not in started}
    return found, list(waiting.values())

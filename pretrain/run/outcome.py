"""outcome.json: when a run started, whether it trains, and how and why its last start ended."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.storage.atomic_write import write_durably

OUTCOME_FILE = "outcome.json"
TRAINING = "training"


@dataclass(frozen=True)
class Outcome:
    """What is known of a run; times are seconds since 1970."""

    state: str
    """training, finished, stopped or failed; a run that was killed is left as `training`."""
    started: float
    """The first start of the run."""
    resumed: float
    """The last start."""
    ended: float | None = None
    reason: str = ""
    """Why it ended, in one sentence."""


def note_start(run_dir: Path, resume_step: int) -> None:
    """Record that the run trains; a run that starts at step 0 starts for the first time."""
    now, before = round(time.time(), 3), read_outcome(run_dir)
    started = before.started if before is not None and resume_step > 0 else now
    _write(run_dir, Outcome(TRAINING, started, now))


def note_end(run_dir: Path, state: str, reason: str) -> None:
    """Record how the run ended; a full disk does not hide the error that ended it."""
    before = read_outcome(run_dir)
    if before is not None:
        with contextlib.suppress(OSError):
            _write(run_dir, replace(before, state=state, ended=round(time.time(), 3), reason=reason))


def read_outcome(run_dir: Path) -> Outcome | None:
    """None: the run is older than these records, or the file cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        values: dict[str, Any] = json.loads((run_dir / OUTCOME_FILE).read_bytes())
        outcome = Outcome(**values)
        if isinstance(outcome.started, int | float) and isinstance(outcome.resumed, int | float):
            return outcome
    return None


def _write(run_dir: Path, outcome: Outcome) -> None:
    content = json.dumps(asdict(outcome), ensure_ascii=False)
    write_durably(run_dir / OUTCOME_FILE, f"{content}\n".encode("utf-8", "replace"))

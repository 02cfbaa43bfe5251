"""outcome.json in a run's folder: when the run started, whether it trains, how and why its last start ended."""

import contextlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.storage.atomic_write import write_durably
from pretrain.outcome.record import OUTCOME_FILE, OutcomeRecord

TRAINING = "training"


@dataclass(frozen=True)
class RunOutcome:
    """When a run started, and how its last attempt ended. Times are Unix timestamps."""

    started: float
    """The first start of the run."""
    resumed: float
    """The last start."""
    end: OutcomeRecord | None = None
    """None: the run trains, or was killed."""

    @property
    def state(self) -> str:
        """training, finished, stopped or failed. A run that was killed stays at training."""
        if self.end is None:
            return TRAINING
        return "failed" if self.end.failure is not None else self.end.exit_code.outcome

    @property
    def ended(self) -> float | None:
        """When the last start ended."""
        return None if self.end is None else self.end.time

    @property
    def reason(self) -> str:
        """Why it ended, in one line."""
        return "" if self.end is None else self.end.message


def record_start(run_dir: Path, resume_step: int) -> None:
    """Record that the run trains. A run that starts at step 0 starts for the first time."""
    now, before = round(time.time(), 3), read_outcome(run_dir)
    started = before.started if before is not None and resume_step > 0 else now
    _write(run_dir, RunOutcome(started, now))


def record_end(run_dir: Path, end: OutcomeRecord) -> None:
    """Record how the run ended. A full disk does not hide the error that ended it."""
    before = read_outcome(run_dir)
    if before is not None:
        with contextlib.suppress(OSError):
            _write(run_dir, replace(before, end=end))


def read_outcome(run_dir: Path) -> RunOutcome | None:
    """None: no start of the run is recorded, or the file cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values: dict[str, Any] = json.loads((run_dir / OUTCOME_FILE).read_bytes())
        end = None if values["end"] is None else OutcomeRecord.from_dict(values["end"])
        return RunOutcome(float(values["started"]), float(values["resumed"]), end)
    return None


def _write(run_dir: Path, outcome: RunOutcome) -> None:
    end = None if outcome.end is None else outcome.end.to_dict()
    content = json.dumps({"started": outcome.started, "resumed": outcome.resumed, "end": end}, ensure_ascii=False)
    write_durably(run_dir / OUTCOME_FILE, f"{content}\n".encode("utf-8", "replace"))

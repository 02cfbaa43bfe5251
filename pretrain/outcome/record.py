"""How an attempt ended, in one small file that its ranks write: supervisors read it instead of logs.

Only the standard library is imported.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.exit_codes import ExitCode
from pretrain.outcome.failure import FailureReport

VARIABLE = "PRETRAIN_OUTCOME_FILE"
"""Environment variable with the path of the file. A launcher sets it, to another file for each attempt."""
OUTCOME_FILE = "outcome.json"
"""Name of the file in an attempt's folder, and of the one in the folder of the run."""


@dataclass(frozen=True)
class OutcomeRecord:
    """The first thing that a rank knew about the end of an attempt."""

    exit_code: ExitCode
    reporter: int
    """The rank that wrote the record."""
    time: float
    step: int | None = None
    """The last step that is saved, if the run finished or stopped."""
    steps_made: int | None = None
    """The steps that this start made. `tracking.log_every_steps` may leave all of them out of metrics.jsonl."""
    message: str = ""
    """Why it ended, in one line."""
    failure: FailureReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OutcomeRecord":
        """Raises ValueError, KeyError or TypeError if the fields are not those of a record."""
        failure = None if values["failure"] is None else FailureReport.from_dict(values["failure"])
        return cls(**{**values, "exit_code": ExitCode(values["exit_code"]), "failure": failure})


def success(
    code: ExitCode, message: str = "", *, step: int | None = None, steps_made: int | None = None
) -> OutcomeRecord:
    """The record of a run that finished, or was stopped and saved."""
    return OutcomeRecord(code, _rank(os.environ), round(time.time(), 3), step, steps_made, " ".join(message.split()))


def failure(report: FailureReport, message: str | None = None) -> OutcomeRecord:
    """The record of a run that failed, with the report's message unless another one is given."""
    line = " ".join((message or report.message).split())
    return OutcomeRecord(report.kind.exit_code, _rank(os.environ), round(time.time(), 3), message=line, failure=report)


def write_for_launcher(record: OutcomeRecord, environment: Mapping[str, str] = os.environ) -> None:
    """Write the record if a launcher asks for one. The first writer wins; the file is on the disk on return.

    An error of the disk is not reported: the launcher still has the exit code.
    """
    if VARIABLE not in environment:
        return
    path = Path(environment[VARIABLE])
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with contextlib.suppress(OSError):
        try:
            with partial.open("wb") as file:
                file.write(json.dumps(record.to_dict()).encode())
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # fails if the file exists
        finally:
            partial.unlink(missing_ok=True)


def read_record(path: Path) -> OutcomeRecord | None:
    """The record; None if no rank wrote one, or it cannot be read."""
    try:
        return OutcomeRecord.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rank(environment: Mapping[str, str]) -> int:
    rank = environment.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0

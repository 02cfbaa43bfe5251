"""How a run ended, in one small file that the process itself writes: supervisors read it instead of logs.

Only the standard library is imported, as by `pretrain.exit_codes`.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.exit_codes import ExitCode

VARIABLE = "PRETRAIN_OUTCOME_FILE"
"""Environment variable with the path of the file: one for each attempt."""


@dataclass(frozen=True)
class OutcomeRecord:
    """The first thing that a rank knew about the end of an attempt."""

    exit_code: ExitCode
    rank: int
    host: str
    time: float
    step: int | None = None
    """The last one that is saved, if the run finished or stopped; the one that went bad, if it diverged."""
    steps_made: int | None = None
    """How many of them this start made; `tracking.log_every_steps` may leave all of them off the run's records."""
    message: str = ""
    """One line."""


def record_outcome(
    code: ExitCode,
    *,
    step: int | None = None,
    steps_made: int | None = None,
    message: str = "",
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Write the record if a supervisor asks for one; the first writer wins, and the file is on the disk on return.

    A disk that takes no file is not reported: the exit code remains.
    """
    if VARIABLE not in environment:
        return
    rank = environment.get("RANK", "0")
    record = OutcomeRecord(
        code,
        int(rank) if rank.isdecimal() else 0,
        socket.gethostname(),
        time.time(),
        step,
        steps_made,
        " ".join(message.split()),
    )
    path = Path(environment[VARIABLE])
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with contextlib.suppress(OSError):
        try:
            with partial.open("wb") as file:
                file.write(json.dumps(asdict(record)).encode())
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # fails if there is one
        finally:
            partial.unlink(missing_ok=True)


def read_outcome(path: Path) -> OutcomeRecord | None:
    """The record; None if no rank wrote one."""
    try:
        values = json.loads(path.read_bytes())
        return OutcomeRecord(**{**values, "exit_code": ExitCode(values["exit_code"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Records of the end of an attempt, as its ranks write them."""

from pathlib import Path

from pretrain.exit_codes import ExitCode
from pretrain.outcome import record
from pretrain.outcome.failure import FailureKind, FailureReport, Stage
from pretrain.outcome.record import OUTCOME_FILE, VARIABLE, OutcomeRecord

OF_CODE = {kind.exit_code: kind for kind in reversed(FailureKind)}
"""A kind of failure with each exit code."""


def report(
    kind: FailureKind = FailureKind.EXCEPTION, message: str = "planted", rank: int = 1, step: int | None = 3
) -> FailureReport:
    return FailureReport(kind, message, (rank,), "stage 0 of 1, tp 0, dp 1", "b", Stage.TRAINING, step)


def end_of(state: str, message: str = "") -> OutcomeRecord:
    """The record of a run that ended in this state: finished, stopped or failed."""
    if state == "failed":
        return record.failure(report(message=message))
    return record.success({"finished": ExitCode.DONE, "stopped": ExitCode.STOPPED}[state], message)


def write(folder: Path, of_attempt: OutcomeRecord) -> OutcomeRecord:
    """As a rank writes it for its launcher, which gave it this folder."""
    record.write_for_launcher(of_attempt, {VARIABLE: str(folder / OUTCOME_FILE)})
    return of_attempt

"""The outcome of an attempt: from its ranks' record, exit codes and srun's messages to a cause, and maybe a node."""

from dataclasses import dataclass, replace
from pathlib import Path

from launch.slurm.slurm_messages import EndCause, JobEnd, TaskFailure
from pretrain.exit_codes import ExitCode, Outcome, outcome_of
from pretrain.outcome.failure import FailureKind, FailureReport
from pretrain.outcome.record import OutcomeRecord

LAST_CHECKPOINT = "training continues from the last checkpoint that was saved"
TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class AttemptOutcome:
    """How an attempt ended, and why."""

    outcome: Outcome
    exit_code: int | None
    cause: str
    """A description of the cause, for people."""
    node: str | None = None
    """The node that may have caused the failure."""
    log: Path | None = None
    """The log of the rank that failed first."""
    trained: bool = True
    """Whether the attempt started its ranks."""
    kind: FailureKind | None = None
    """The kind of failure that the ranks reported; None if they did not."""
    diverged_at: int | None = None
    """The step that went bad, if training diverged."""


@dataclass(frozen=True)
class AttemptFacts:
    """The facts that are known when an attempt's job step is over."""

    folder: Path
    """The folder of its logs."""
    exit_code: int | None
    """srun's; None: it still ran when the attempt had to be given up."""
    rank_0: int | None
    """Exit code of rank 0; None: it was killed, or runs."""
    record: OutcomeRecord | None = None
    """The record that the ranks wrote."""
    failures: tuple[TaskFailure, ...] = ()
    stuck: bool = False
    """srun did not end after a rank had failed and was killed: Slurm itself no longer reaches a node."""
    stop: str | None = None
    """Why the ranks were asked to stop, if that came before any failure."""
    time_is_up: bool = False
    """They were asked because the time limit is near."""
    made_steps: bool = True
    """Whether the attempt made a step, as far as that is known."""
    job_end: JobEnd | None = None
    """Slurm itself ends the job."""


def attempt_outcome(facts: AttemptFacts) -> AttemptOutcome:
    """The outcome. The ranks' record comes first: after the last save there is only clean-up.

    A time limit that leaves no time for a step is a failure, saved or not: every further attempt would end so at once.
    """
    gone = next((each for each in facts.failures if each.rank is None), None)
    code = facts.rank_0 if facts.rank_0 is not None else facts.exit_code
    if (success := _success(facts)) is not None:
        return success
    if facts.job_end is not None and (gone is not None or facts.job_end.cause is EndCause.NODE_FAILURE):
        which = f" ({gone.node}: {gone.message})" if gone is not None else ""
        cause = f"{facts.job_end}{which} before it could save: {LAST_CHECKPOINT}"
        return AttemptOutcome("lost", code, cause, gone.node if gone is not None else None)
    if (refusal := _refusal(facts)) is not None:
        return refusal
    why = str(facts.job_end) if facts.job_end is not None else facts.stop
    if why and not facts.made_steps:
        if facts.time_is_up:
            return no_time(why)
        return AttemptOutcome("stopped", ExitCode.STOPPED, f"{why}: before the first step, nothing was trained")
    if not facts.made_steps and (early := _early_signal(facts)) is not None:
        return early
    if facts.job_end is not None:
        return AttemptOutcome("interrupted", code, f"{facts.job_end} before it could save: {LAST_CHECKPOINT}")
    if facts.exit_code is None:
        late = "the save took longer than there was time; give more by sbatch --signal"
        return AttemptOutcome("lost", None, f"{facts.stop}: {late}; {LAST_CHECKPOINT}")
    if gone is not None:  # also if a rank on another node noticed it before
        return AttemptOutcome("lost", code, f"{gone.node}: {gone.message}", gone.node)
    failed = _failed(facts, code)
    if facts.stuck:
        return replace(failed, outcome="lost", cause=f"{failed.cause}; srun did not end after it")
    return failed


def no_time(why: str) -> AttemptOutcome:
    """The outcome of an attempt that was asked to stop at the time limit before it made a step."""
    return AttemptOutcome(
        "failed", ExitCode.FAILED, f"{why}: it left no time for a step; give the job more time (--time)"
    )


def last_lines(log: Path, count: int, start: int = 0) -> list[str]:
    """The end of a log, for people; nothing if it cannot be read. `start`: bytes at its head to leave out."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    # Addresses in torch's own code are of no use.
    return [line for line in lines if line.strip() and not line.startswith("frame #")][-count:]


def log_of(folder: Path, rank: int) -> Path | None:
    """A rank's log, which is named after its node and itself."""
    return next(folder.glob(f"*-rank-{rank:05d}.log"), None)


def _failed(facts: AttemptFacts, code: int | None) -> AttemptOutcome:
    if facts.record is not None and facts.record.failure is not None:
        return _reported(facts, facts.record.failure, code)
    if not facts.failures:
        return AttemptOutcome("lost", code, f"srun ended with exit code {code} and named no rank")
    first = facts.failures[0]
    assert first.rank is not None
    log = log_of(facts.folder, first.rank)
    last = last_lines(log, 1) if log is not None else []
    cause = f"rank {first.rank} on {first.node} failed first: {first.message}" + "".join(f": {line}" for line in last)
    return AttemptOutcome("failed", code, cause, first.node if first.was_killed else None, log)


def _reported(facts: AttemptFacts, failure: FailureReport, code: int | None) -> AttemptOutcome:
    """The outcome by the report of the ranks."""
    log = log_of(facts.folder, failure.ranks[0]) if failure.ranks else None
    node = _node_of(log) if failure.kind.may_be_the_node else None
    return AttemptOutcome("failed", code, failure.message, node, log, kind=failure.kind)


def _success(facts: AttemptFacts) -> AttemptOutcome | None:
    """The outcome of ranks that finished, or stopped and saved."""
    of_record = facts.record.exit_code if facts.record is not None else None
    if of_record == ExitCode.DONE or (facts.exit_code == 0 and facts.rank_0 == 0):
        return AttemptOutcome("finished", ExitCode.DONE, "finished")
    if of_record == ExitCode.STOPPED or facts.rank_0 == ExitCode.STOPPED:
        asked = facts.job_end or facts.stop or (facts.record.message if facts.record is not None else "")
        why = str(asked or "asked to")
        if facts.time_is_up and not facts.made_steps:
            return no_time(why)
        return AttemptOutcome("stopped", ExitCode.STOPPED, f"stopped and saved: {why}")
    return None


def _refusal(facts: AttemptFacts) -> AttemptOutcome | None:
    """The outcome of an error with an exit code of its own, on any rank. A full disk may take no record: then there are
    the exit codes."""
    failure = facts.record.failure if facts.record is not None else None
    if failure is not None and failure.kind.exit_code in _REFUSALS:
        code = failure.kind.exit_code
        diverged_at = failure.step if failure.kind is FailureKind.DIVERGED else None
        return AttemptOutcome(code.outcome, code, failure.message, kind=failure.kind, diverged_at=diverged_at)
    codes = (facts.rank_0, facts.exit_code, *(each.exit_code for each in facts.failures[:1]))
    found = next((ExitCode(each) for each in codes if each in _REFUSALS), None)
    if found is None:
        return None
    return AttemptOutcome(outcome_of(found), found, f"{found.meaning}; see the logs")


def _early_signal(facts: AttemptFacts) -> AttemptOutcome | None:
    """The outcome if a signal ended the first rank before it could listen.

    The sender is not known. The exit code shows that: it is the signal's, while that of a known request is 75.
    """
    first = facts.failures[0] if facts.failures else None
    if first is None or (code := first.stop_signal_code) is None:
        return None
    why = f"rank {first.rank} on {first.node} was asked by a signal ({first.message})"
    return AttemptOutcome("stopped", code, f"{why}: before the first step, nothing was trained")


def _node_of(log: Path | None) -> str | None:
    return log.name.rpartition("-rank-")[0] if log is not None else None


_REFUSALS = (ExitCode.MISTAKE, ExitCode.DIVERGED, ExitCode.IN_USE, ExitCode.REFUSED)

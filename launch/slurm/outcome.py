"""What an attempt came to: from exit codes, srun's words and the ranks' logs to an outcome, a cause, maybe a node."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from launch.outcomes import outcome_of
from launch.slurm.srun import Failure
from pretrain.exit_codes import ExitCode
from pretrain.run.attempts import Outcome
from pretrain.run.outcome_record import OutcomeRecord

LAST_CHECKPOINT = "training continues from the last checkpoint that was saved"
TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Ending:
    """The last word on an attempt."""

    outcome: Outcome
    exit_code: int | None
    cause: str
    node: str | None = None
    """To blame: what failed there may be the node's fault."""
    log: Path | None = None
    """Of the rank that failed first."""
    trained: bool = True
    """Whether its ranks were started."""
    diverged_at: int | None = None
    """The step that went bad, where training diverged."""


@dataclass(frozen=True)
class Facts:
    """What is known when an attempt's step is over."""

    folder: Path
    """Of its logs."""
    exit_code: int | None
    """srun's; None: it still ran when the attempt had to be given up."""
    rank_0: int | None
    """Exit code of rank 0; None: it was killed, or runs."""
    record: OutcomeRecord | None = None
    """What the ranks wrote down about their end, as soon as it was known."""
    failures: tuple[Failure, ...] = ()
    stuck: bool = False
    """srun did not end after a rank had failed and was killed: Slurm itself reaches a node no more."""
    stop: str | None = None
    """Why the ranks were asked to stop, if they were before anything failed."""
    time_is_up: bool = False
    """They were, because the time limit is near."""
    made_steps: bool = True
    """Whether the attempt made a step, as far as that is known."""
    slurm_ends: str | None = None
    """Why Slurm itself ends the job, if it does."""


def judge(facts: Facts) -> Ending:
    """The outcome. What the ranks wrote down comes first: after the last save there is only clean-up.

    A time limit that leaves no time for a step is a failure, saved or not: every further attempt would end so at once.
    """
    gone = next((each for each in facts.failures if each.rank is None), None)
    code = facts.rank_0 if facts.rank_0 is not None else facts.exit_code
    if (known := _known(facts)) is not None:
        return known
    if facts.slurm_ends and (gone is not None or _NODE_LOST in facts.slurm_ends):
        which = f" ({gone.node}: {gone.words})" if gone is not None else ""
        cause = f"{facts.slurm_ends}{which} before it could save: {LAST_CHECKPOINT}"
        return Ending("lost", code, cause, gone.node if gone is not None else None)
    if (refusal := _refusal_of(facts)) is not None:
        return refusal
    why = facts.slurm_ends or facts.stop
    if why and not facts.made_steps:
        if facts.time_is_up:
            return no_time(why)
        return Ending("stopped", ExitCode.STOPPED, f"{why}: before the first step, nothing was trained")
    if not facts.made_steps and (early := _early_signal(facts)) is not None:
        return early
    if facts.slurm_ends:
        return Ending("interrupted", code, f"{facts.slurm_ends} before it could save: {LAST_CHECKPOINT}")
    if facts.exit_code is None:
        late = "the save took longer than there was time; give more by sbatch --signal"
        return Ending("lost", None, f"{facts.stop}: {late}; {LAST_CHECKPOINT}")
    if gone is not None:  # also where a rank on another node noticed it before
        return Ending("lost", code, f"{gone.node}: {gone.words}", gone.node)
    ending = _failed(facts, code)
    if facts.stuck:
        return replace(ending, outcome="lost", cause=f"{ending.cause}; srun did not end after it")
    return ending


def no_time(why: str) -> Ending:
    """The ending of an attempt that was asked to stop at the time limit before it made a step."""
    return Ending("failed", ExitCode.FAILED, f"{why}: it left no time for a step; give the job more time (--time)")


def last_lines(log: Path, count: int) -> list[str]:
    """The end of a log; nothing where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    # Addresses in torch's own code tell nobody anything.
    return [line for line in lines if line.strip() and not line.startswith("frame #")][-count:]


def log_of(folder: Path, rank: int) -> Path | None:
    """A rank's log, which has its node's name too."""
    return next(folder.glob(f"*-rank-{rank:05d}.log"), None)


def _failed(facts: Facts, code: int | None) -> Ending:
    found = _verdict_in(facts.folder)
    if found is not None:
        cause, rank = found
        log = log_of(facts.folder, rank) if rank is not None else None
        node = _node_of(log) if _MAYBE_THE_NODE.search(cause) else None
        return Ending("failed", code, cause, node, log)
    if not facts.failures:
        return Ending("lost", code, f"srun ended with exit code {code} and told of no rank")
    first = facts.failures[0]
    assert first.rank is not None
    log = log_of(facts.folder, first.rank)
    said = last_lines(log, 1) if log is not None else []
    cause = f"rank {first.rank} on {first.node} failed first: {first.words}" + "".join(f": {line}" for line in said)
    return Ending("failed", code, cause, first.node if _KILLED.search(first.words) else None, log)


def _verdict_in(folder: Path) -> tuple[str, int | None] | None:
    """What the ranks found out themselves: the words, and which rank it was."""
    for log in sorted(folder.glob("*.log"), key=lambda path: path.name[-len("00000.log") :]):
        for line in reversed(last_lines(log, 400)):
            if match := _VERDICT.search(line):
                rank = re.match(r"rank (\d+)", match[0])
                return match[0], int(rank[1]) if rank else None
    return None


def _known(facts: Facts) -> Ending | None:
    """The ending that the ranks themselves knew: finished, or stopped and saved."""
    of_record = facts.record.exit_code if facts.record is not None else None
    if of_record == ExitCode.DONE or (facts.exit_code == 0 and facts.rank_0 == 0):
        return Ending("finished", ExitCode.DONE, "finished")
    if of_record == ExitCode.STOPPED or facts.rank_0 == ExitCode.STOPPED:
        why = facts.slurm_ends or facts.stop or (facts.record.message if facts.record is not None else "") or "asked to"
        if facts.time_is_up and not facts.made_steps:
            return no_time(why)
        return Ending("stopped", ExitCode.STOPPED, f"stopped and saved: {why}")
    return None


def _refusal_of(facts: Facts) -> Ending | None:
    """The ending by an error with a code of its own, by whichever rank it was. A full disk may take no record: then
    there are the exit codes."""
    if (record := facts.record) is not None:
        diverged_at = record.step if record.exit_code == ExitCode.DIVERGED else None
        return Ending(outcome_of(record.exit_code), record.exit_code, record.message, diverged_at=diverged_at)
    first = next((re.search(r"exit code (\d+)$", each.words) for each in facts.failures[:1]), None)
    codes = (facts.rank_0, facts.exit_code, int(first[1]) if first else None)
    code = next((ExitCode(code) for code in codes if code in _REFUSALS), None)
    return None if code is None else Ending(outcome_of(code), code, f"{code.meaning}; see the logs")


def _early_signal(facts: Facts) -> Ending | None:
    """The ending by a signal to the rank that ended first, if it came before that rank could listen.

    Who sent it is not known. The exit code says so: it is the signal's, where that of a known request is 75.
    """
    first = facts.failures[0] if facts.failures else None
    if first is None or first.rank is None or not (match := _ASKED.search(first.words)):
        return None
    code = int(match[2]) if match[2] else _CODES[match[1]]
    why = f"rank {first.rank} on {first.node} was asked by a signal ({first.words})"
    return Ending("stopped", code, f"{why}: before the first step, nothing was trained")


def _node_of(log: Path | None) -> str | None:
    return log.name.rpartition("-rank-")[0] if log is not None else None


_KILLED = re.compile(r"Killed|Bus error|Segmentation fault|exit code 13[4-9]$")
_NODE_LOST = "node fail"
"""Slurm's words."""
_REFUSALS = (ExitCode.MISTAKE, ExitCode.DIVERGED, ExitCode.IN_USE, ExitCode.REFUSED)
_CODES = {"Hangup": 129, "Interrupt": 130, "User defined signal 1": 138, "Terminated": 143}
"""srun's names of the signals that ask for a stop, and the exit codes that a shell shows for them."""
_ASKED = re.compile(rf"^({'|'.join(_CODES)})$|exit code ({'|'.join(map(str, _CODES.values()))})$")
_VERDICT = re.compile(
    r"rank \d+ \(.* failed first.*|rank \d+ \(.* kept the others waiting.*|no rank came on, .*"
    r"|rank \d+ ended: .*"
)
_MAYBE_THE_NODE = re.compile(
    r"ended without a word|no sign of life|never met|kept the others waiting|CUDA error|uncorrectable|NCCL|Bus error"
)

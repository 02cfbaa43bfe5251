"""What an attempt came to: from exit codes, srun's words and the ranks' logs to an outcome, a cause, maybe a node."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from launch.attempts import Outcome
from launch.outcomes import outcome_of
from launch.step import Failure
from pretrain.exit_codes import ExitCode

LAST_CHECKPOINT = "training goes on from the last checkpoint that was saved"
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


@dataclass(frozen=True)
class Facts:
    """What is known when an attempt's step is over."""

    folder: Path
    """Of its logs."""
    exit_code: int | None
    """srun's; None: it still ran when the attempt had to be given up."""
    rank_0: int | None
    """Exit code of rank 0; None: it was killed, or runs."""
    failures: tuple[Failure, ...] = ()
    stuck: bool = False
    """srun did not end after a rank had failed and was killed: Slurm itself reaches a node no more."""
    stop: str | None = None
    """Why the ranks were asked to stop, if they were before anything failed."""
    made_steps: bool = True
    """Whether a step was recorded that was not there before."""
    slurm_ends: str | None = None
    """Why Slurm itself ends the job, if it does."""


def judge(facts: Facts) -> Ending:
    """The outcome. Rank 0 leaves with the others' agreement: where it finished or saved, what follows is clean-up."""
    gone = next((each for each in facts.failures if each.rank is None), None)
    code = facts.rank_0 if facts.rank_0 is not None else facts.exit_code
    if facts.exit_code == 0 and facts.rank_0 == 0:
        return Ending("finished", 0, "finished")
    if facts.rank_0 == ExitCode.STOPPED:
        return Ending("stopped", ExitCode.STOPPED, f"stopped and saved: {facts.slurm_ends or facts.stop or 'asked to'}")
    if facts.slurm_ends:
        told = f" ({gone.node}: {gone.words})" if gone is not None else ""
        cause = f"{facts.slurm_ends}{told} before it could save: {LAST_CHECKPOINT}"
        return Ending("lost", code, cause, gone.node if gone is not None else None)
    if facts.exit_code is None:
        late = "the save took longer than there was time; give more by sbatch --signal"
        return Ending("lost", None, f"{facts.stop}: {late}; {LAST_CHECKPOINT}")
    if (refusal := _refusal_of(facts)) is not None:
        return refusal
    if facts.stop and not facts.made_steps:
        return Ending("stopped", code, f"{facts.stop}: before the first step, nothing was trained")
    if gone is not None:  # also where a rank on another node noticed it before
        return Ending("lost", code, f"{gone.node}: {gone.words}", gone.node)
    ending = _failed(facts, code)
    if facts.stuck:
        return replace(ending, outcome="lost", cause=f"{ending.cause}; srun did not end after it")
    return ending


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


def _refusal_of(facts: Facts) -> Ending | None:
    """The ending by a refusal with a message, by whichever rank it was."""
    first = next((re.search(r"exit code (\d+)$", each.words) for each in facts.failures[:1]), None)
    codes = (facts.rank_0, facts.exit_code, int(first[1]) if first else None)
    code = next((ExitCode(code) for code in codes if code in _REFUSALS), None)
    if code is None:
        return None
    for log in sorted(facts.folder.glob("*.log")):
        text = "\n".join(last_lines(log, 400))
        _, mark, message = text.rpartition("pretrain: error: ")
        if mark:
            return Ending(outcome_of(code), code, " ".join(message.split()))
    return Ending(outcome_of(code), code, f"{code.meaning}, see the logs")


def _node_of(log: Path | None) -> str | None:
    return log.name.rpartition("-rank-")[0] if log is not None else None


_KILLED = re.compile(r"Killed|Bus error|Segmentation fault|exit code 13[4-9]$")
_REFUSALS = (ExitCode.MISTAKE, ExitCode.IN_USE, ExitCode.REFUSED)
_VERDICT = re.compile(
    r"rank \d+ \(.* failed first.*|rank \d+ \(.* kept the others waiting.*|no rank came on, .*|training diverged: .*"
    r"|rank \d+ ended: .*"
)
_MAYBE_THE_NODE = re.compile(
    r"ended without a word|no sign of life|never met|kept the others waiting|CUDA error|uncorrectable|NCCL|Bus error"
)

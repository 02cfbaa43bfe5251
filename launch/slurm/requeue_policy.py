"""Whether a job that ended is started again, when, and without which nodes: a pure function of its attempts."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pretrain.exit_codes import LEAST_SIGNAL_CODE, Outcome
from pretrain.run.attempts import Attempt, Ended

LONGEST_WAIT_SECONDS = 3600.0
FAILURES = ("failed", "lost")
"""Outcomes that count against `max_restarts` unless there was progress."""


@dataclass(frozen=True)
class Limits:
    """The limits of restarting (see `cluster` in the configuration)."""

    max_restarts: int
    """Attempts that may fail without a step of progress and be followed by another one."""
    restart_window_minutes: float
    """A longer pause between two attempts, as in a queue, lets the first be forgotten."""
    backoff_seconds: float
    """Wait before the first restart after a failure; doubled for each further one."""
    exclude_after: int
    """Failures of a node after which the job runs elsewhere; 0: never."""


@dataclass(frozen=True)
class Decision:
    """The decision after an attempt."""

    restart: bool
    why: str
    wait_seconds: float = 0.0
    exclude: tuple[str, ...] = ()
    """Nodes that failed repeatedly."""


def decide(attempts: Sequence[Attempt], job: str, limits: Limits) -> Decision:
    """Decide after the newest attempt, which has ended."""
    ended = attempts[-1].ended
    assert ended is not None
    if ended.outcome == "finished":
        return Decision(False, "the run is finished")
    if ended.outcome == "mistake":
        return Decision(False, "a mistake in what was given: another attempt would end the same way")
    if _diverged_again(attempts, job):
        return Decision(False, "it diverged twice at the same step: another attempt would end the same way")
    recent = _recent(attempts, job, limits.restart_window_minutes * 60)
    exclude = _bad_nodes(recent, limits.exclude_after)
    fruitless = _fruitless(recent, _steps_before(attempts, recent))
    if fruitless > limits.max_restarts:
        tried = f"{fruitless} attempts failed in a row" if fruitless > 1 else "an attempt failed"
        return Decision(False, f"{tried} without a new step (max_restarts={limits.max_restarts})", exclude=exclude)
    if not _is_failure(ended):
        return Decision(True, f"{ended.outcome}, to be continued", exclude=exclude)
    wait = min(limits.backoff_seconds * 2 ** max(0, fruitless - 1), LONGEST_WAIT_SECONDS)
    counted = f"restart {fruitless} of at most {limits.max_restarts} without a new step"
    return Decision(True, counted if fruitless else "it made progress", wait, exclude)


def stays(
    decision: Decision,
    outcome: Outcome,
    nodes: Collection[str],
    *,
    trained: bool,
    seconds_left: float | None,
    start_seconds: float,
) -> bool:
    """Whether the next attempt starts in the same allocation: after a crash, while there is time to start and to save.

    If a node is lost, or one of `nodes` failed repeatedly, the job needs another allocation, from the queue.
    `trained`: the attempt started its ranks. `seconds_left`: None without a time limit.
    """
    if not decision.restart or set(decision.exclude) & set(nodes) or outcome != "failed" or not trained:
        return False
    return seconds_left is None or seconds_left > decision.wait_seconds + start_seconds


def _diverged_again(attempts: Sequence[Attempt], job: str) -> bool:
    """Whether the newest two attempts of this job diverged at one step: a resume is exact, and a faulty device is not.

    Another job may have been given other settings.
    """
    of_job = [attempt for attempt in attempts[-2:] if attempt.began is not None and attempt.began.job == job]
    steps = [attempt.ended.diverged_at for attempt in of_job if attempt.ended is not None]
    return len(steps) == 2 and steps[0] is not None and steps[0] == steps[1]


def _recent(attempts: Sequence[Attempt], job: str, window_seconds: float) -> list[Attempt]:
    """The latest attempts of this job, oldest first, without those before a pause of more than `window_seconds`."""
    recent: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.began is None or attempt.began.job != job or attempt.ended is None:
            break
        if recent and recent[-1].began is not None and recent[-1].began.time - attempt.ended.time > window_seconds:
            break
        recent.append(attempt)
    return recent[::-1]


def _steps_before(attempts: Sequence[Attempt], recent: Collection[Attempt]) -> int:
    first = attempts[len(attempts) - len(recent) :]
    return first[0].began.step if first and first[0].began is not None else 0


def _fruitless(recent: Sequence[Attempt], step: int) -> int:
    """How many of the newest attempts failed without a step beyond those of earlier attempts.

    An attempt that was asked to stop, or that Slurm ended, does not count. `step` is the last step of other jobs: it
    counts until an attempt of this job ends at an earlier step, because this one may begin at step 0 (run.restart).
    """
    count, is_own = 0, False
    for attempt in recent:
        assert attempt.ended is not None
        end = attempt.ended.step
        # A resume repeats the steps that were recorded after its checkpoint, which does not count as progress.
        if end > step:
            count = 0
        elif _is_failure(attempt.ended):
            count += 1
        is_own, step = is_own or end != step, max(step, end) if is_own else end
    return count


def _is_failure(ended: Ended) -> bool:
    """Whether an end counts as a failure. A stop by a signal that neither Slurm nor the job knows of counts too: the
    next attempt may end in the same way."""
    of_unknown_signal = ended.exit_code is not None and ended.exit_code >= LEAST_SIGNAL_CODE
    return ended.outcome in FAILURES or (ended.outcome == "stopped" and of_unknown_signal)


def _bad_nodes(recent: Sequence[Attempt], exclude_after: int) -> tuple[str, ...]:
    failures = Counter(attempt.ended.node for attempt in recent if attempt.ended is not None and attempt.ended.node)
    return tuple(sorted(node for node, times in failures.items() if node and times >= exclude_after > 0))

"""Whether a job is started again, from its attempts alone."""

from dataclasses import replace

import pytest

from launch.slurm.requeue_policy import Decision, Limits, decide, stays
from pretrain.exit_codes import ExitCode
from pretrain.run.attempts import Attempt, Began, Ended, Outcome

LIMITS = Limits(max_restarts=2, restart_window_minutes=10, backoff_seconds=30, exclude_after=2)
CODES: dict[Outcome, int] = {"finished": 0, "stopped": 75, "interrupted": 1, "failed": 1, "mistake": 2, "lost": 1}


def attempts(*ends: tuple[Outcome, int], job: str = "7", pause: float = 60, node: str | None = None) -> list[Attempt]:
    """Attempts of a minute each: outcome, and the last step on record."""
    made, step, now = [], 0, 0.0
    for number, (outcome, after) in enumerate(ends, 1):
        began = Began(now, job, number - 1, ("a", "b"), 2, step)
        made.append(Attempt(number, began, Ended(now + 60, outcome, CODES[outcome], "", after, node)))
        step, now = after, now + 60 + pause
    return made


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        ("finished", False),
        ("mistake", False),
        ("stopped", True),
        ("interrupted", True),
        ("failed", True),
        ("lost", True),
    ],
)
def test_the_outcome_says_whether_another_attempt_makes_sense(outcome: Outcome, again: bool) -> None:
    assert decide(attempts((outcome, 10)), "7", LIMITS).restart is again


def test_a_stop_is_continued_at_once_and_a_failure_after_a_wait() -> None:
    assert decide(attempts(("stopped", 10)), "7", LIMITS).wait_seconds == 0
    assert decide(attempts(("failed", 10)), "7", LIMITS).wait_seconds == 30


def test_the_wait_doubles_with_each_failure_without_a_new_step() -> None:
    waits = [decide(attempts(*[("failed", 0)] * count), "7", LIMITS).wait_seconds for count in (1, 2)]
    assert waits == [30, 60]


def test_max_restarts_attempts_follow_one_that_made_no_step() -> None:
    assert decide(attempts(*[("failed", 0)] * 2), "7", LIMITS).restart
    decision = decide(attempts(*[("failed", 0)] * 3), "7", LIMITS)
    assert not decision.restart and "max_restarts=2" in decision.why


def test_repeated_steps_do_not_count_as_progress() -> None:
    ends: list[tuple[Outcome, int]] = [("failed", 59), ("failed", 55), ("lost", 59), ("failed", 59)]
    assert decide(attempts(*ends[:3]), "7", LIMITS).restart
    assert not decide(attempts(*ends), "7", LIMITS).restart
    assert decide(attempts(*ends[:3], ("failed", 60)), "7", LIMITS).restart


def test_a_run_restarted_at_step_0_counts_its_own_steps() -> None:
    def decided(*steps: int) -> Decision:
        before = attempts(("failed", 59), job="6")
        after = attempts(*[("failed", step) for step in steps])
        first = replace(after[0], began=replace(after[0].began, step=59)) if after[0].began else after[0]
        return decide([*before, first, *after[1:]], "7", LIMITS)

    assert decided(10, 20, 30, 40).restart, "each came further than the one before"
    assert decided(59, 10, 20, 30, 40).restart, "the first came not as far as to begin again"
    assert not decided(10, 10, 10).restart
    assert not decided(59, 59, 59).restart
    assert not decided(70, 60, 61, 62).restart, "what this job made before is to be passed"


def test_a_stop_by_an_unknown_signal_counts_as_a_failure() -> None:
    def ended(count: int, code: int) -> Decision:
        made = attempts(*[("stopped", 0)] * count)
        return decide(
            [replace(each, ended=replace(each.ended, exit_code=code)) for each in made if each.ended], "7", LIMITS
        )

    assert ended(2, 143).restart and ended(2, 143).wait_seconds == 60
    assert not ended(3, 143).restart
    assert ended(9, ExitCode.STOPPED).restart


@pytest.mark.parametrize("outcome", ["stopped", "interrupted"])
def test_only_failures_count(outcome: Outcome) -> None:
    assert decide(attempts(*[(outcome, 0)] * 9), "7", LIMITS).restart
    assert decide(attempts(*[(outcome, 0), ("failed", 0)] * 2), "7", LIMITS).restart
    assert not decide(attempts(*[(outcome, 0), ("failed", 0)] * 3), "7", LIMITS).restart, "and a stop forgives none"


def test_a_crash_is_retried_here_while_there_is_time() -> None:
    crash = decide(attempts(("failed", 9)), "7", LIMITS)
    needed = crash.wait_seconds + 100

    def here(
        decision: Decision = crash, outcome: Outcome = "failed", left: float | None = None, *, trained: bool = True
    ) -> bool:
        return stays(decision, outcome, ("a", "b"), trained=trained, seconds_left=left, start_seconds=100)

    assert here() and here(left=needed + 1)
    assert not here(left=needed - 1)
    assert not here(outcome="lost") and not here(outcome="stopped") and not here(trained=False)
    assert not here(decide(attempts(("failed", 5), ("failed", 9), node="b"), "7", LIMITS)), "the node is to be left"
    assert here(decide(attempts(("failed", 5), ("failed", 9), node="c"), "7", LIMITS)), "it is not one of these"
    assert not here(decide(attempts(*[("failed", 0)] * 3), "7", LIMITS)), "under the same cap"


def test_a_second_divergence_at_one_step_ends_the_job() -> None:
    def diverged(*steps: int | None, recorded: int = 10, job: str = "7") -> list[Attempt]:
        made = attempts(*[("failed", recorded)] * len(steps), job=job)
        ends = [replace(each.ended, diverged_at=step) for each, step in zip(made, steps, strict=True) if each.ended]
        return [replace(each, ended=ended) for each, ended in zip(made, ends, strict=True)]

    assert decide(diverged(12), "7", LIMITS).restart
    assert not decide(diverged(12, 12), "7", LIMITS).restart
    assert decide(diverged(12, 17), "7", LIMITS).restart, "though the same step was the last on record"
    assert decide(diverged(12, None), "7", LIMITS).restart and decide(diverged(None, None), "7", LIMITS).restart
    assert decide([*diverged(12, job="6"), *diverged(12)], "7", LIMITS).restart, (
        "the other job may have had other words"
    )


def test_other_jobs_and_a_long_pause_reset_the_failures() -> None:
    failed: list[tuple[Outcome, int]] = [("failed", 0)] * 5
    assert not decide(attempts(*failed), "7", LIMITS).restart
    assert decide(attempts(*failed, pause=601), "7", LIMITS).restart
    before = attempts(*failed, job="6")
    last = Attempt(6, Began(1000, "7", 0, ("a",), 1, 0), Ended(1001, "failed", 1, "", 0))
    assert decide([*before, last], "7", LIMITS).restart


def test_a_failing_node_is_excluded_unless_disabled() -> None:
    history = attempts(("failed", 5), ("failed", 9), node="b")
    assert decide(history[:1], "7", LIMITS).exclude == ()
    assert decide(history, "7", LIMITS).exclude == ("b",)
    assert decide(history, "7", replace(LIMITS, exclude_after=0)).exclude == ()

"""From the ranks' record, exit codes and srun's messages to the outcome of an attempt."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from launch.slurm.attempt import made_steps, preflight_outcome, stopped_early
from launch.slurm.job import SlurmJob
from launch.slurm.job_signals import Signals
from launch.slurm.outcome import AttemptFacts, attempt_outcome
from launch.slurm.slurm_messages import EndCause, JobEnd, TaskFailure
from pretrain.exit_codes import ExitCode
from pretrain.outcome import record as records
from pretrain.outcome.failure import FailureKind
from pretrain.outcome.record import OutcomeRecord
from tests.support.outcomes import OF_CODE, report

PREEMPTED, NODE_FAILED = JobEnd(EndCause.PREEMPTION, "preemption"), JobEnd(EndCause.NODE_FAILURE, "node failure")


@pytest.fixture
def facts(tmp_path: Path) -> AttemptFacts:
    for rank, node in enumerate("ab"):
        (tmp_path / f"{node}-rank-{rank:05d}.log").write_text("12:00:00 step 1/9\n")
    return AttemptFacts(tmp_path, exit_code=1, rank_0=1)


def test_rank_0_decides_if_all_finished_or_saved(facts: AttemptFacts) -> None:
    assert attempt_outcome(replace(facts, exit_code=0, rank_0=0)).outcome == "finished"
    # What is cut off after the save is clean-up.
    assert attempt_outcome(replace(facts, exit_code=137, rank_0=75, stop="asked")).outcome == "stopped"
    # Rank 0 ended well, and another was killed: something is wrong.
    assert attempt_outcome(replace(facts, exit_code=137, rank_0=0)).outcome != "finished"


@pytest.mark.parametrize("kind", FailureKind)
def test_the_kind_alone_says_whether_a_node_may_be_the_cause(facts: AttemptFacts, kind: FailureKind) -> None:
    ending = attempt_outcome(replace(facts, record=records.failure(report(kind, "words"))))
    assert (ending.exit_code, ending.cause, ending.kind) == (kind.exit_code, "words", kind)
    assert ending.node == ("b" if kind.may_be_the_node else None)
    if kind.exit_code == ExitCode.FAILED:
        assert ending.log == facts.folder / "b-rank-00001.log"


def test_without_a_record_srun_names_the_rank(facts: AttemptFacts) -> None:
    with (facts.folder / "b-rank-00001.log").open("a") as log:
        log.write("ValueError: planted\n")
    killed = (TaskFailure("b", "Exited with exit code 1", 0.0, 1), TaskFailure("a", "Killed", 1.0, 0))
    ending = attempt_outcome(replace(facts, failures=killed))
    assert ending.cause == "rank 1 on b failed first: Exited with exit code 1: ValueError: planted"
    assert ending.node is None


def test_a_node_that_srun_could_not_use_is_lost(facts: AttemptFacts) -> None:
    after = TaskFailure("a", "Killed", 1.0, 0)
    gone = TaskFailure("b", "Node failure", 0.5)
    for failures in ((gone, after), (after, gone)):
        ending = attempt_outcome(replace(facts, rank_0=None, failures=failures))
        assert (ending.outcome, ending.node) == ("lost", "b")


def test_a_node_that_slurm_no_longer_reaches_is_lost(facts: AttemptFacts) -> None:
    """Its rank became unresponsive, another noticed, and srun waited for the node without end."""
    unresponsive = records.failure(report(FailureKind.UNRESPONSIVE, "no sign of life"))
    killed = (TaskFailure("a", "Exited with exit code 1", 1.0, 0),)
    reported = replace(facts, exit_code=137, failures=killed, record=unresponsive)
    assert (attempt_outcome(reported).outcome, attempt_outcome(reported).node) == ("failed", "b")
    ending = attempt_outcome(replace(reported, stuck=True))
    assert (ending.outcome, ending.node) == ("lost", "b")
    assert ending.cause == "no sign of life; srun did not end after it"


def record(code: ExitCode, message: str = "", step: int | None = None) -> OutcomeRecord:
    if code in OF_CODE:
        return records.failure(report(OF_CODE[code], message, step=step))
    return records.success(code, message, step=step)


@pytest.mark.parametrize("code", [ExitCode.MISTAKE, ExitCode.REFUSED, ExitCode.IN_USE, ExitCode.DIVERGED])
def test_an_error_with_its_own_exit_code_is_the_cause(facts: AttemptFacts, code: ExitCode) -> None:
    message = "data.path='x': no such folder"
    ending = attempt_outcome(replace(facts, exit_code=143, rank_0=None, record=record(code, message)))
    assert (ending.outcome, ending.exit_code, ending.cause) == (code.outcome, code, message)


def test_only_a_divergence_has_a_step_that_diverged(facts: AttemptFacts) -> None:
    for code, step in ((ExitCode.DIVERGED, 12), (ExitCode.REFUSED, None)):
        assert attempt_outcome(replace(facts, record=record(code, step=12))).diverged_at == step


def test_without_a_record_the_exit_codes_decide(facts: AttemptFacts) -> None:
    for found in (
        replace(facts, exit_code=143, rank_0=74),
        replace(facts, exit_code=143, rank_0=None, failures=(TaskFailure("b", "Exited with exit code 74", 0.0, 1),)),
    ):
        ending = attempt_outcome(found)
        assert (ending.outcome, ending.exit_code) == ("failed", ExitCode.REFUSED)
        assert ending.cause.startswith("the system refused: ")


@pytest.mark.parametrize("ends", [PREEMPTED, NODE_FAILED, None])
def test_a_complete_save_is_a_stop_whatever_kills_ranks_later(facts: AttemptFacts, ends: JobEnd | None) -> None:
    killed = (TaskFailure("a", "Killed", 9.0, 0), TaskFailure("b", "Node failure", 9.0))
    late = replace(facts, rank_0=None, failures=killed, job_end=ends, stop="asked by SIGUSR1")
    for exit_code in (137, None):
        ending = attempt_outcome(replace(late, exit_code=exit_code, record=record(ExitCode.STOPPED)))
        assert (ending.outcome, ending.exit_code) == ("stopped", ExitCode.STOPPED)
        assert ending.cause == f"stopped and saved: {ends or 'asked by SIGUSR1'}"
        assert attempt_outcome(replace(late, exit_code=exit_code, record=record(ExitCode.DONE))).outcome == "finished"


def test_an_end_before_the_first_step_loses_nothing(facts: AttemptFacts) -> None:
    ended = replace(facts, exit_code=143, rank_0=None, made_steps=False, job_end=PREEMPTED)
    assert attempt_outcome(ended).outcome == "stopped"
    assert attempt_outcome(replace(ended, made_steps=True)).outcome == "interrupted"
    assert attempt_outcome(replace(ended, job_end=NODE_FAILED)).outcome == "lost"
    assert attempt_outcome(replace(ended, failures=(TaskFailure("b", "Node failure", 0.0),))).outcome == "lost"


@pytest.mark.parametrize("words", ["Terminated", "User defined signal 1", "Hangup", "Exited with exit code 143"])
def test_a_signal_before_a_rank_could_listen_is_a_stop(facts: AttemptFacts, words: str) -> None:
    asked = replace(facts, exit_code=143, rank_0=None, made_steps=False, failures=(TaskFailure("b", words, 0.0, 1),))
    ending = attempt_outcome(asked)
    assert ending.outcome == "stopped"
    assert ending.cause.startswith(f"rank 1 on b was asked by a signal ({words})")
    assert ending.exit_code in (129, 138, 143), "the sender of the signal is unknown"
    assert attempt_outcome(replace(asked, stop="asked by SIGUSR1")).exit_code == ExitCode.STOPPED
    assert attempt_outcome(replace(asked, made_steps=True)).outcome == "failed"
    crashed = (TaskFailure("a", "Exited with exit code 1", 0.0, 0), *asked.failures)
    assert attempt_outcome(replace(asked, failures=crashed)).outcome == "failed"


def test_a_time_limit_too_short_for_one_step_is_a_failure(facts: AttemptFacts) -> None:
    asked = replace(facts, exit_code=138, rank_0=138, stop="asked by SIGUSR1", made_steps=False, time_is_up=True)
    assert attempt_outcome(asked).outcome == "failed" and "give the job more time" in attempt_outcome(asked).cause
    assert attempt_outcome(replace(asked, made_steps=True, rank_0=75)).outcome == "stopped"


def test_a_too_short_time_limit_is_a_failure_even_if_saved(facts: AttemptFacts) -> None:
    for saved in (
        replace(facts, exit_code=0, rank_0=75, record=record(ExitCode.STOPPED)),
        replace(facts, exit_code=0, rank_0=75),
    ):
        asked = replace(saved, stop="asked by SIGUSR1", made_steps=False, time_is_up=True)
        ending = attempt_outcome(asked)
        assert (ending.outcome, ending.exit_code) == ("failed", ExitCode.FAILED)
        assert "give the job more time" in ending.cause
        assert attempt_outcome(replace(asked, time_is_up=False)).outcome == "stopped"
        assert attempt_outcome(replace(asked, made_steps=True)).outcome == "stopped"
        assert attempt_outcome(replace(asked, record=record(ExitCode.DONE))).outcome == "finished"


@pytest.mark.parametrize(("time_is_up", "outcome"), [(True, "failed"), (False, "stopped")])
def test_a_stop_before_the_start_fails_only_at_the_time_limit(time_is_up: bool, outcome: str) -> None:
    signals = cast(Signals, SimpleNamespace(stop="asked by SIGUSR1", time_is_up=time_is_up, look=lambda job: "stop"))
    ending = stopped_early(SlurmJob("7", 0, ("a",), (1,), None, 0), signals)
    assert ending is not None and (ending.outcome, ending.trained) == (outcome, False)


def test_saved_steps_count_even_if_none_is_recorded() -> None:
    assert made_steps(replace(record(ExitCode.STOPPED), steps_made=7), recorded=False)
    assert not made_steps(replace(record(ExitCode.STOPPED), steps_made=0), recorded=False)
    assert made_steps(None, recorded=True) and made_steps(record(ExitCode.DIVERGED), recorded=True)


def test_a_stop_before_the_first_step_lost_nothing(facts: AttemptFacts) -> None:
    asked = replace(facts, exit_code=138, rank_0=138, stop="asked", made_steps=False)
    assert attempt_outcome(asked).outcome == "stopped"
    assert attempt_outcome(replace(asked, made_steps=True)).outcome != "stopped"


def test_a_grace_shorter_than_a_save_names_the_last_checkpoint(facts: AttemptFacts) -> None:
    for found in (
        replace(facts, exit_code=None, rank_0=None, stop="asked by SIGUSR1"),
        replace(facts, exit_code=137, rank_0=None, stop="cancelled", job_end=PREEMPTED),
    ):
        ending = attempt_outcome(found)
        assert ending.outcome in ("lost", "interrupted")
        assert "training continues from the last checkpoint that was saved" in ending.cause


def test_the_preflight_names_a_bad_node_in_its_results() -> None:
    lines = ["a message", '{"bad_nodes": ["b", "c"], "faults": ["one", "two"]}', "srun: error: b: task 1: Exited"]
    ending = preflight_outcome(ExitCode.BAD_NODE, lines)
    assert (ending.outcome, ending.node, ending.cause, ending.trained) == ("failed", "b", "preflight: two", False)
    assert preflight_outcome(ExitCode.MISTAKE, ["no results"]).cause == "preflight: no results"

"""From exit codes, srun's words and logs to what an attempt came to."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from launch.outcomes import OUTCOMES
from launch.slurm.job import Job
from launch.slurm.job_signals import Signals
from launch.slurm.outcome import Facts, judge
from launch.slurm.srun import Failure
from launch.slurm.supervise import made_steps, stopped_early
from pretrain.exit_codes import ExitCode
from pretrain.run.outcome_record import OutcomeRecord

VERDICT = "rank 1 (stage 0 of 1, tp 0, dp 1, host b, process 9) failed first"


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    for rank, node in enumerate("ab"):
        (tmp_path / f"{node}-rank-{rank:05d}.log").write_text("12:00:00 step 1/9\n")
    return Facts(tmp_path, exit_code=1, rank_0=1)


def say(facts: Facts, rank: int, line: str) -> None:
    with next(facts.folder.glob(f"*-rank-{rank:05d}.log")).open("a") as log:
        log.write(line + "\n")


def test_rank_0_speaks_for_all_where_they_finished_or_saved(facts: Facts) -> None:
    assert judge(replace(facts, exit_code=0, rank_0=0)).outcome == "finished"
    # What is cut off after the save is clean-up.
    assert judge(replace(facts, exit_code=137, rank_0=75, stop="asked")).outcome == "stopped"
    # Rank 0 ended well, and another was killed: something is wrong.
    assert judge(replace(facts, exit_code=137, rank_0=0)).outcome != "finished"


def test_the_ranks_own_words_are_the_cause_and_a_killed_rank_may_be_its_nodes_fault(facts: Facts) -> None:
    say(facts, 0, f"12:00:01 {VERDICT}: ended without a word: killed, or out of memory")
    ending = judge(replace(facts, failures=(Failure("b", "Killed", 0.0, 1),)))
    assert (ending.outcome, ending.node) == ("failed", "b")
    assert ending.cause == f"{VERDICT}: ended without a word: killed, or out of memory"


def test_an_exception_is_not_blamed_on_the_node(facts: Facts) -> None:
    say(facts, 0, f"12:00:01 {VERDICT} in step 3: ValueError: planted")
    ending = judge(facts)
    assert (ending.outcome, ending.node) == ("failed", None) and ending.cause.endswith("ValueError: planted")
    assert ending.log == facts.folder / "b-rank-00001.log"


def test_without_a_verdict_the_first_that_srun_named_is_told_with_its_last_line(facts: Facts) -> None:
    say(facts, 1, "ValueError: planted")
    killed = (Failure("b", "Exited with exit code 1", 0.0, 1), Failure("a", "Killed", 1.0, 0))
    ending = judge(replace(facts, failures=killed))
    assert ending.cause == "rank 1 on b failed first: Exited with exit code 1: ValueError: planted"
    assert ending.node is None


def test_a_node_that_srun_could_not_use_is_lost(facts: Facts) -> None:
    after = Failure("a", "Killed", 1.0, 0)
    gone = Failure("b", "Node failure", 0.5)
    for told in ((gone, after), (after, gone)):
        ending = judge(replace(facts, rank_0=None, failures=told))
        assert (ending.outcome, ending.node) == ("lost", "b")


def test_a_node_on_which_slurm_itself_does_not_answer_is_lost(facts: Facts) -> None:
    """Its rank fell silent, another noticed, and srun waited for the node without end."""
    say(facts, 0, f"12:00:09 {VERDICT}: no sign of life for 9 s")
    told = replace(facts, exit_code=137, failures=(Failure("a", "Exited with exit code 1", 1.0, 0),))
    assert (judge(told).outcome, judge(told).node) == ("failed", "b")
    ending = judge(replace(told, stuck=True))
    assert (ending.outcome, ending.node) == ("lost", "b")
    assert ending.cause == f"{VERDICT}: no sign of life for 9 s; srun did not end after it"


def record(code: ExitCode, message: str = "") -> OutcomeRecord:
    return OutcomeRecord(code, 0, "a", 0.0, message=message)


@pytest.mark.parametrize("code", [ExitCode.MISTAKE, ExitCode.REFUSED, ExitCode.IN_USE, ExitCode.DIVERGED])
def test_what_a_rank_wrote_down_is_the_cause(facts: Facts, code: ExitCode) -> None:
    words = "data.path='x': no such folder"
    ending = judge(replace(facts, exit_code=143, rank_0=None, record=record(code, words)))
    assert (ending.outcome, ending.exit_code, ending.cause) == (OUTCOMES[code], code, words)


def test_the_step_that_diverged_is_known_from_the_record_and_from_no_other(facts: Facts) -> None:
    for code, step in ((ExitCode.DIVERGED, 12), (ExitCode.REFUSED, None)):
        assert judge(replace(facts, record=replace(record(code), step=12))).diverged_at == step


def test_without_a_record_as_on_a_full_disk_the_exit_codes_say_what_it_was(facts: Facts) -> None:
    for found in (
        replace(facts, exit_code=143, rank_0=74),
        replace(facts, exit_code=143, rank_0=None, failures=(Failure("b", "Exited with exit code 74", 0.0, 1),)),
    ):
        ending = judge(found)
        assert (ending.outcome, ending.exit_code) == ("failed", ExitCode.REFUSED)
        assert ending.cause.startswith("the system refused: ")


@pytest.mark.parametrize("ends", ["Slurm ended the job (preemption)", "Slurm ended the job (node failure)", None])
def test_a_save_on_the_disk_is_a_stop_whatever_kills_the_ranks_afterwards(facts: Facts, ends: str | None) -> None:
    killed = (Failure("a", "Killed", 9.0, 0), Failure("b", "Node failure", 9.0))
    late = replace(facts, rank_0=None, failures=killed, slurm_ends=ends, stop="asked by SIGUSR1")
    for exit_code in (137, None):
        ending = judge(replace(late, exit_code=exit_code, record=record(ExitCode.STOPPED)))
        assert (ending.outcome, ending.exit_code) == ("stopped", ExitCode.STOPPED)
        assert ending.cause == f"stopped and saved: {ends or 'asked by SIGUSR1'}"
        assert judge(replace(late, exit_code=exit_code, record=record(ExitCode.DONE))).outcome == "finished"


def test_slurm_that_ends_a_job_in_its_start_lost_nothing_unless_a_node_is_gone(facts: Facts) -> None:
    ended = replace(facts, exit_code=143, rank_0=None, made_steps=False, slurm_ends="Slurm ended the job (preemption)")
    assert judge(ended).outcome == "stopped"
    assert judge(replace(ended, made_steps=True)).outcome == "interrupted"
    assert judge(replace(ended, slurm_ends="Slurm ended the job (node failure)")).outcome == "lost"
    assert judge(replace(ended, failures=(Failure("b", "Node failure", 0.0),))).outcome == "lost"


@pytest.mark.parametrize("words", ["Terminated", "User defined signal 1", "Hangup", "Exited with exit code 143"])
def test_a_signal_that_came_before_a_rank_could_listen_is_a_stop(facts: Facts, words: str) -> None:
    asked = replace(facts, exit_code=143, rank_0=None, made_steps=False, failures=(Failure("b", words, 0.0, 1),))
    ending = judge(asked)
    assert ending.outcome == "stopped"
    assert ending.cause.startswith(f"rank 1 on b was asked by a signal ({words})")
    assert ending.exit_code in (129, 138, 143), "nothing shows who sent it"
    assert judge(replace(asked, stop="asked by SIGUSR1")).exit_code == ExitCode.STOPPED
    assert judge(replace(asked, made_steps=True)).outcome == "failed"
    crashed = (Failure("a", "Exited with exit code 1", 0.0, 0), *asked.failures)
    assert judge(replace(asked, failures=crashed)).outcome == "failed"


def test_a_time_limit_that_leaves_no_time_for_a_step_is_a_failure(facts: Facts) -> None:
    asked = replace(facts, exit_code=138, rank_0=138, stop="asked by SIGUSR1", made_steps=False, time_is_up=True)
    assert judge(asked).outcome == "failed" and "give the job more time" in judge(asked).cause
    assert judge(replace(asked, made_steps=True, rank_0=75)).outcome == "stopped"


def test_a_time_limit_that_leaves_no_time_for_a_step_is_a_failure_though_the_ranks_saved(facts: Facts) -> None:
    for saved in (
        replace(facts, exit_code=0, rank_0=75, record=record(ExitCode.STOPPED)),
        replace(facts, exit_code=0, rank_0=75),
    ):
        asked = replace(saved, stop="asked by SIGUSR1", made_steps=False, time_is_up=True)
        ending = judge(asked)
        assert (ending.outcome, ending.exit_code) == ("failed", ExitCode.FAILED)
        assert "give the job more time" in ending.cause
        assert judge(replace(asked, time_is_up=False)).outcome == "stopped"
        assert judge(replace(asked, made_steps=True)).outcome == "stopped"
        assert judge(replace(asked, record=record(ExitCode.DONE))).outcome == "finished"


@pytest.mark.parametrize(("time_is_up", "outcome"), [(True, "failed"), (False, "stopped")])
def test_a_stop_before_the_ranks_started_is_a_failure_only_at_the_time_limit(time_is_up: bool, outcome: str) -> None:
    signals = cast(Signals, SimpleNamespace(stop="asked by SIGUSR1", time_is_up=time_is_up, look=lambda job: "stop"))
    ending = stopped_early(Job("7", 0, ("a",), (1,), None, 0), signals)
    assert ending is not None and (ending.outcome, ending.trained) == (outcome, False)


def test_steps_that_are_saved_count_though_none_of_them_is_recorded() -> None:
    assert made_steps(replace(record(ExitCode.STOPPED), steps_made=7), recorded=False)
    assert not made_steps(replace(record(ExitCode.STOPPED), steps_made=0), recorded=False)
    assert made_steps(None, recorded=True) and made_steps(record(ExitCode.DIVERGED), recorded=True)


def test_a_stop_before_the_first_step_lost_nothing(facts: Facts) -> None:
    asked = replace(facts, exit_code=138, rank_0=138, stop="asked", made_steps=False)
    assert judge(asked).outcome == "stopped"
    assert judge(replace(asked, made_steps=True)).outcome != "stopped"


def test_a_grace_shorter_than_a_save_leaves_the_last_checkpoint_and_says_so(facts: Facts) -> None:
    for found in (
        replace(facts, exit_code=None, rank_0=None, stop="asked by SIGUSR1"),
        replace(facts, exit_code=137, rank_0=None, stop="cancelled", slurm_ends="Slurm ended the job (preemption)"),
    ):
        ending = judge(found)
        assert ending.outcome in ("lost", "interrupted")
        assert "training continues from the last checkpoint that was saved" in ending.cause

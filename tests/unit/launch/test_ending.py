"""From exit codes, srun's words and logs to what an attempt came to."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.ending import Facts, judge
from launch.step import Failure
from pretrain.exit_codes import ExitCode

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


def test_a_mistake_is_told_in_the_words_of_the_refusal(facts: Facts) -> None:
    say(facts, 1, "pretrain: error: rank 1: data.path='x': no such folder")
    for found in (
        replace(facts, exit_code=143, rank_0=2),
        replace(facts, exit_code=143, rank_0=None, failures=(Failure("b", "Exited with exit code 2", 0.0, 1),)),
    ):
        ending = judge(found)
        assert (ending.outcome, ending.cause) == ("mistake", "rank 1: data.path='x': no such folder")


def test_a_run_folder_still_held_by_a_lost_node_is_no_mistake(facts: Facts) -> None:
    say(facts, 0, "pretrain: error: run.dir='x': in use by another live process (process 1 on b); wait for it")
    ending = judge(replace(facts, exit_code=ExitCode.IN_USE, rank_0=ExitCode.IN_USE))
    assert (ending.outcome, ending.exit_code) == ("failed", ExitCode.IN_USE)
    assert "in use by another live process" in ending.cause


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
        assert ending.outcome == "lost" and "goes on from the last checkpoint that was saved" in ending.cause

"""`sbatch slurm/pretrain.sh` on a real Slurm: runs that are cut, killed or refused continue or end as they should.

Jobs take their time: most run beside each other, and one of them is hurt again and again.
"""

import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from pretrain.outcome.failure import FailureKind
from pretrain.run.attempts import Attempt
from tests.support.runs import ROOT, train_records
from tests.support.slurm_jobs import Jobs, LiveJob, scontrol

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

ENDLESS = ("train.max_steps=100000", "evaluation.every_steps=0")
NODE_LOST, NODE_DOWN = 3, 5
"""Which blows they are."""
LENGTH = ("train.max_steps=200", "evaluation.every_steps=0", "parallel.tp=2")


@dataclass
class Background:
    """Jobs that run undisturbed."""

    cut: LiveJob
    whole: LiveJob
    crashing: LiveJob
    refused: LiveJob


@pytest.fixture(scope="module")
def background(jobs: Jobs) -> Background:
    both = ("--nodes=2", "--nodelist=node1,node2")
    limit = ("--time=2", "--signal=B:USR1@40")
    return Background(
        cut=jobs.submit("cut", *LENGTH, "tracking=wandb_offline", flags=(*both, *limit), PLANTED_SECONDS=0.5),
        # Side by side on the same nodes, which meet by IPv6 here.
        whole=jobs.submit("whole", *LENGTH, flags=both, MASTER_ADDR="::1"),
        crashing=jobs.submit("crashing", "cluster.max_restarts=1", "checkpoint.every_steps=0", PLANTED_CRASH=3),
        refused=jobs.submit("refused", "data.path=nowhere"),
    )


@dataclass
class Hurt:
    """A job that was hurt in many ways, one after the other, and cancelled in the end."""

    job: LiveJob
    attempts: list[Attempt]
    seconds: list[float]
    """From each blow until no process of the attempt was left."""


@pytest.fixture(scope="module")
def hurt(jobs: Jobs, background: Background) -> Hurt:
    blows = (
        lambda: job.signal("--signal=USR1"),
        lambda: job.ranks()[1].kill(),
        lambda: job.step_daemon(1).kill(),
        lambda: job.ranks()[1].send_signal(signal.SIGSTOP),
        lambda: scontrol("update", f"NodeName={nodes_of(job)[1]}", "State=DOWN", "Reason=test"),
        lambda: job.signal(),
    )
    # The first three attempts are on the same two nodes: one of them fails twice. Slurm otherwise takes whichever
    # happens to have finished with other jobs.
    scontrol("update", "NodeName=node3", "State=DRAIN", "Reason=test")
    job = jobs.submit(
        "hurt", *ENDLESS, "parallel.pp=2", "engine.timeout_minutes=0.2", flags=("--nodes=2",), PLANTED_SECONDS=0.2
    )
    seconds = []
    for number, blow in enumerate(blows, 1):
        job.wait_for_training(number)
        ranks, node = job.ranks(), nodes_of(job)[1]
        if number == NODE_LOST:
            scontrol("update", "NodeName=node3", "State=RESUME")
        began = time.monotonic()
        blow()
        while any(rank.is_running() for rank in ranks.values()):
            assert time.monotonic() - began < 90, f"attempt {number}\n{job.log}"
            time.sleep(0.2)
        seconds.append(time.monotonic() - began)
        job.wait_for_end(number)
        if number == NODE_DOWN:  # with the node that failed twice too few are left; refused where it came back itself
            subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], capture_output=True)
    return Hurt(job, job.attempts(), seconds)


def nodes_of(job: LiveJob) -> tuple[str, ...]:
    began = job.attempts()[-1].began
    assert began is not None
    return began.nodes


def test_an_illegal_run_is_refused_at_once_and_not_queued_again(jobs: Jobs) -> None:
    job = jobs.submit("illegal", "parallel.tp=3")
    assert job.wait_until_over() == "FAILED"
    assert job.log.splitlines()[-1].startswith(("pretrain: error: ", "  "))
    assert "parallel.tp" in job.log and "Traceback" not in job.log
    assert "Restarts=0" in job.facts and "ExitCode=2:0" in job.facts
    assert not job.run_dir.exists()


def test_a_mistake_that_only_the_ranks_find_is_not_queued_again(background: Background) -> None:
    job = background.refused
    assert job.wait_until_over() == "FAILED"
    (attempt,) = job.attempts()
    assert attempt.ended is not None and attempt.ended.outcome == "mistake" and "nowhere" in attempt.ended.cause
    assert "Restarts=0" in job.facts and "ExitCode=2:0" in job.facts
    assert "not started again: a mistake" in job.log.splitlines()[-1]


def test_a_stop_by_a_signal_is_saved_and_continued(hurt: Hurt) -> None:
    first, second = hurt.attempts[:2]
    assert first.ended is not None and second.began is not None
    assert (first.ended.outcome, first.ended.exit_code) == ("stopped", 75)
    assert second.began.step == first.ended.step and f"step-{first.ended.step:08d}" in hurt.job.log
    assert second.began.restart == 1 and second.began.job == first.began.job  # type: ignore[union-attr]


def test_nodes_excluded_by_the_owner_stay_excluded(jobs: Jobs) -> None:
    job = jobs.submit("excluding", *ENDLESS, flags=("--exclude=node1",))
    job.wait_for_training(1)
    again = f"requeue('{job.job}', wait_seconds=600, exclude=['node3'], until=0, waiting=print)"
    subprocess.run([sys.executable, "-c", f"from launch.slurm.requeue import requeue; {again}"], check=True, cwd=ROOT)
    assert "ExcNodeList=node1,node3" in job.facts
    job.signal()


def test_a_killed_rank_ends_the_step_on_all_nodes_and_is_named(hurt: Hurt) -> None:
    ended = hurt.attempts[1].ended
    assert ended is not None and ended.outcome == "failed"
    assert ended.cause.startswith("rank 1 ") and ended.node is not None
    # Its node has no other rank that could see the process end: to the others it no longer answers.
    assert ended.kind in (FailureKind.UNRESPONSIVE, FailureKind.PROCESS_DIED)
    assert hurt.seconds[1] < 60


def test_after_a_crash_ranks_restart_in_the_same_allocation(hurt: Hurt) -> None:
    for crashed in (2, 4):
        before, after = (attempt.began for attempt in hurt.attempts[crashed - 1 : crashed + 1])
        assert before is not None and after is not None
        assert (after.restart, after.nodes) == (before.restart, before.nodes)


def test_a_killed_slurmstepd_counts_as_a_lost_node(hurt: Hurt) -> None:
    ended, began = hurt.attempts[2].ended, hurt.attempts[2].began
    assert ended is not None and began is not None
    assert (ended.outcome, ended.node) == ("lost", began.nodes[1])
    assert hurt.seconds[2] < 60


def test_a_node_that_failed_twice_is_left_out(hurt: Hurt) -> None:
    second, third, fourth = (attempt.began for attempt in hurt.attempts[1:4])
    assert second is not None and third is not None and fourth is not None
    assert second.nodes == third.nodes
    assert third.nodes[1] not in fourth.nodes


def test_a_hang_ends_by_the_timeout_and_names_the_rank(hurt: Hurt) -> None:
    ended = hurt.attempts[3].ended
    assert ended is not None and ended.outcome == "failed"
    assert ended.cause.startswith("rank 1 ") and ended.kind is FailureKind.UNRESPONSIVE
    assert hurt.seconds[3] < 60


def test_a_job_whose_node_goes_down_continues_elsewhere_or_later(hurt: Hurt) -> None:
    ended, after = hurt.attempts[4].ended, hurt.attempts[5].began
    assert ended is not None and after is not None
    assert ended.outcome in ("lost", "stopped")  # saved, where Slurm's grace was long enough
    assert "node failure" in ended.cause
    assert after.restart == 3


def test_a_cancelled_job_saves_and_is_not_queued_again(hurt: Hurt) -> None:
    assert hurt.job.wait_until_over() == "CANCELLED"
    ended = hurt.attempts[5].ended
    assert ended is not None and "cancelled" in ended.cause
    assert (ended.outcome, ended.exit_code) == ("stopped", 75)
    assert len(hurt.job.attempts()) == 6 and "Restarts=3" in hurt.job.facts


def test_no_process_is_left_of_a_job_that_was_hurt(hurt: Hurt) -> None:
    hurt.job.wait_until_over()
    hurt.job.wait_until_nothing_runs(20)


def test_each_attempt_has_its_own_logs_by_node_and_rank(hurt: Hurt) -> None:
    for attempt in hurt.attempts:
        assert attempt.began is not None
        folder = hurt.job.run_dir / "logs" / f"attempt-{attempt.number:04d}"
        names = {f"{node}-rank-{rank:05d}.log" for rank, node in enumerate(attempt.began.nodes)}
        assert {path.name for path in folder.glob("*-rank-*.log")} == names


def test_a_preempted_run_saves_and_resumes(jobs: Jobs, hurt: Hurt) -> None:
    flags = ("--nodes=2", "--ntasks-per-node=2", "--nodelist=node1,node3")
    layout = ("parallel.pp=2", "parallel.tp=2", "train.max_steps=40", "evaluation.every_steps=0")
    job = jobs.submit("preempted", *layout, flags=flags, PLANTED_SECONDS=0.4)
    job.wait_for_training(1)
    urgent = ["sbatch", "--partition=urgent", "--nodelist=node3", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"]
    subprocess.run(urgent, check=True, capture_output=True)
    first = job.wait_for_end(1).ended
    assert first is not None and first.outcome == "stopped"
    assert job.wait_until_over() == "COMPLETED"
    second = job.attempts()[1]
    assert second.began is not None and second.began.step == first.step and second.began.ranks == 4
    assert second.ended is not None and (second.ended.outcome, second.ended.step) == ("finished", 40)


def test_a_run_cut_by_its_time_limit_has_the_same_losses(
    background: Background,
) -> None:
    cut, whole = background.cut, background.whole
    assert cut.wait_until_over() == whole.wait_until_over() == "COMPLETED"
    assert [attempt.ended.outcome for attempt in whole.attempts() if attempt.ended] == ["finished"]
    ends = [attempt.ended for attempt in cut.attempts() if attempt.ended]
    assert len(ends) > 1 and [end.outcome for end in ends] == ["stopped"] * (len(ends) - 1) + ["finished"]
    assert "SIGUSR1" in ends[0].cause
    losses = [{step: record["loss"] for step, record in train_records(job.run_dir).items()} for job in (cut, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 200
    # One run for wandb, and the command that sends it.
    sync = re.findall(r"wandb sync \S+/offline-run-\*-(\w+)", cut.log)
    assert len(sync) == len(ends) and set(sync) == {(cut.run_dir / "wandb_run_id").read_text().strip()}


def test_a_crash_loop_ends_after_its_restarts_and_says_why(background: Background) -> None:
    job = background.crashing
    assert job.wait_until_over() == "FAILED"
    assert [attempt.ended.outcome for attempt in job.attempts() if attempt.ended] == ["failed"] * 3
    assert "ExitCode=1:0" in job.facts and "Restarts=0" in job.facts
    end = job.log[job.log.rindex("== attempt 3 failed") :]
    assert "ValueError: planted" in end and "max_restarts=1" in end

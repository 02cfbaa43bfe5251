"""The batch process of a training job: it runs attempts and decides what follows each.

    python -m launch.slurm.supervise key=value ...      (slurm/pretrain.sh runs it)

The exit code is that of `pretrain train`, or 0 if the job was queued again.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_pipeline.errors import SYSTEM_FAULTS, UserError
from launch.slurm.attempt import run_attempt, settle_last
from launch.slurm.job import SlurmJob, job_of
from launch.slurm.job_signals import Signals, say, what_follows
from launch.slurm.requeue import can_do_without, requeue
from launch.slurm.requeue_policy import Decision, Limits, decide, stays
from launch.termination import ignore_until_gone
from pretrain import slurm_client
from pretrain.config.cluster import ClusterConfig
from pretrain.distributed.watchdog.errors import kind_of
from pretrain.exit_codes import ExitCode
from pretrain.run import attempts

START_SECONDS = 120.0
"""Time that an attempt needs to reach its first step. With less time before the signal, the job is queued again."""
LAST_SECONDS = 5.0
"""Time before the limit in which nothing more is asked of Slurm."""


def main(overrides: Sequence[str]) -> int:
    try:
        return supervise(overrides, Signals())
    except UserError as error:
        say(f"pretrain: error: {error}")
        return kind_of(error).exit_code
    except OSError as error:
        if error.errno not in SYSTEM_FAULTS:
            raise
        say(f"pretrain: error: {error}: no attempt can be recorded; make room and sbatch the same command")
        return ExitCode.REFUSED
    finally:
        ignore_until_gone()


def supervise(overrides: Sequence[str], signals: Signals) -> int:
    """Run attempts as long as they may follow each other in this job; returns the job's exit code."""
    job = job_of(os.environ)
    where = f"{len(job.nodes)} node(s): {' '.join(job.nodes)}"
    say(f"== job {job.name} on {where}; {job.ranks} rank(s); restart {job.restarts}")
    from pretrain.config.checks import check_run
    from pretrain.config.load import load_run_config

    config = load_run_config(overrides)
    check_run(config, job.ranks)
    run_dir, limits = Path(config.run.dir).absolute(), limits_of(config.cluster)
    signals.signal_seconds = config.cluster.signal_seconds
    left = slurm_client.seconds_left(job.name)
    ends_at = float("inf") if left is None else time.monotonic() + left
    settle_last(run_dir, job)
    done = attempts.read_attempts(run_dir)
    if job.restarts and done and done[-1].began and done[-1].began.job == job.name:
        decision = decide(done, job.name, limits)  # Slurm queues a job again without asking if it lost a node
        if not decision.restart:
            return conclude(job, decision, done[-1].ended, ends_at)
    while True:
        outcome = run_attempt(overrides, job, run_dir, signals)
        if signals.job_end is not None:
            say(f"   {what_follows(signals.job_end)}")
            return outcome.exit_code or ExitCode.FAILED
        done = attempts.read_attempts(run_dir)
        decision = decide(done, job.name, limits)
        start_seconds = config.cluster.signal_seconds + START_SECONDS
        here = stays(
            decision,
            outcome.outcome,
            job.nodes,
            trained=outcome.trained,
            seconds_left=slurm_client.seconds_left(job.name),
            start_seconds=start_seconds,
        )
        unfit = slurm_client.unfit(job.nodes) if here else []
        if unfit:
            say(f"   {' '.join(unfit)}: drained or down")
        if not here or signals.stop or unfit:
            return conclude(job, decision, done[-1].ended, ends_at)
        say(f"   started again on these nodes in {decision.wait_seconds:.0f} s: {decision.why}")
        if not signals.wait(decision.wait_seconds, job):
            say("   not started again here: the job is asked to stop")
            return conclude(job, decision, done[-1].ended, ends_at)


def conclude(job: SlurmJob, decision: Decision, ended: attempts.Ended | None, ends_at: float) -> int:
    """Queue the job again, or not; returns the exit code."""
    code = ExitCode.FAILED if ended is None or ended.exit_code is None else ended.exit_code
    if not decision.restart:
        if code:
            say(f"   not started again: {decision.why}")
        return code
    exclude = decision.exclude
    if exclude and not can_do_without(job, exclude):
        say(f"   {' '.join(exclude)}: failed repeatedly, but without it too few nodes would be left")
        exclude = ()
    elsewhere = f", without {' '.join(exclude)}, which failed repeatedly" if exclude else ""
    after = f" in {decision.wait_seconds:.0f} s" if decision.wait_seconds else ""
    refusal = requeue(
        job.name,
        wait_seconds=decision.wait_seconds,
        exclude=exclude,
        until=ends_at - LAST_SECONDS,
        waiting=lambda answer: say(f"   Slurm did not requeue the job ({answer}): retrying until the job's time is up"),
    )
    if refusal:
        say(f"   Slurm did not requeue the job ({refusal}): submit the same command again with sbatch to continue")
        return code
    say(f"   queued again{after}{elsewhere}: {decision.why}")
    return ExitCode.DONE


def limits_of(cluster: ClusterConfig) -> Limits:
    """The limits of the cluster's settings."""
    return Limits(**{field.name: getattr(cluster, field.name) for field in fields(Limits)})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

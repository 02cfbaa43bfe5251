"""The batch process of a training job: attempts, their records, and the decisions what follows each.

    python -m launch.slurm.supervise key=value ...      (slurm/pretrain.sh runs it in its own place)

The exit code is that of `pretrain train`; 0 where the job was queued again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from data_pipeline.errors import SYSTEM_FAULTS, UserError
from launch.nodes.rendezvous import rendezvous
from launch.outcomes import outcome_of
from launch.slurm import job as slurm_job
from launch.slurm.job import Job
from launch.slurm.job_signals import Signals, after_slurm_ends, say, why_slurm_ends
from launch.slurm.outcome import LAST_CHECKPOINT, Ending, Facts, judge, last_lines, log_of, no_time
from launch.slurm.rank_main import PEER, outcome_file, read_note
from launch.slurm.requeue_policy import Decision, Limits, decide, stays
from launch.slurm.srun import run_step, srun_command
from launch.termination import ignore_until_gone
from pretrain.config.cluster import ClusterConfig
from pretrain.config.errors import RunInUse, code_of_refusal
from pretrain.exit_codes import ExitCode
from pretrain.run import attempts, outcome_record

START_SECONDS = 120.0
"""For another attempt to reach its first step; with less time left before the signal, the job is queued again."""
LAST_SECONDS = 5.0
"""Before the time limit nothing more is asked of Slurm."""


def main(words: Sequence[str]) -> int:
    try:
        return supervise(words, Signals())
    except UserError as error:
        say(f"pretrain: error: {error}")
        return code_of_refusal(error)
    except OSError as error:
        if error.errno not in SYSTEM_FAULTS:
            raise
        say(f"pretrain: error: {error}: no attempt can be recorded; make room and sbatch the same command")
        return ExitCode.REFUSED
    finally:
        ignore_until_gone()


def supervise(words: Sequence[str], signals: Signals) -> int:
    """Attempts of the run that `words` configure, as long as they may follow each other here; returns the exit code of
    the job."""
    job = slurm_job.job_of(os.environ)
    where = f"{len(job.nodes)} node(s): {' '.join(job.nodes)}"
    say(f"== job {job.name} on {where}; {job.ranks} rank(s); restart {job.restarts}")
    from pretrain.config.checks import check_run
    from pretrain.config.load import load_run_config

    config = load_run_config(words)
    check_run(config, job.ranks)
    run_dir, limits = Path(config.run.dir).absolute(), limits_of(config.cluster)
    signals.signal_seconds = config.cluster.signal_seconds
    left = slurm_job.seconds_left(job.name)
    ends_at = float("inf") if left is None else time.monotonic() + left
    settle_last(run_dir, job)
    done = attempts.read_attempts(run_dir)
    if job.restarts and done and done[-1].began and done[-1].began.job == job.name:
        decision = decide(done, job.name, limits)  # Slurm queues a job again without asking where it lost a node
        if not decision.restart:
            return conclude(job, decision, done[-1].ended, ends_at)
    while True:
        ending = one_attempt(words, job, run_dir, signals)
        if signals.slurm_ends:
            say(f"   {after_slurm_ends(signals.slurm_ends)}")
            return ending.exit_code or ExitCode.FAILED
        done = attempts.read_attempts(run_dir)
        decision = decide(done, job.name, limits)
        start_seconds = config.cluster.signal_seconds + START_SECONDS
        here = stays(
            decision,
            ending.outcome,
            job.nodes,
            trained=ending.trained,
            seconds_left=slurm_job.seconds_left(job.name),
            start_seconds=start_seconds,
        )
        unfit = slurm_job.unfit(job.nodes) if here else []
        if unfit:
            say(f"   {' '.join(unfit)}: drained or down")
        if not here or signals.stop or unfit:
            return conclude(job, decision, done[-1].ended, ends_at)
        say(f"   started again on these nodes in {decision.wait_seconds:.0f} s: {decision.why}")
        if not signals.wait(decision.wait_seconds, job):
            say("   not started again here: the job is asked to stop")
            return conclude(job, decision, done[-1].ended, ends_at)


def one_attempt(words: Sequence[str], job: Job, run_dir: Path, signals: Signals) -> Ending:
    """An attempt with its record and its last lines in the log."""
    number, before = attempts.next_attempt(run_dir), last_step(run_dir)
    folder = attempts.log_folder(run_dir, number)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if error.errno in SYSTEM_FAULTS:
            raise
        remedy = "make room or choose another run.dir"
        raise UserError(f"run.dir={str(run_dir)!r}: {folder} cannot be made ({error.strerror}); {remedy}") from None
    attempts.began(run_dir, number, job=job.name, restart=job.restarts, nodes=job.nodes, ranks=job.ranks, step=before)
    ending = (
        stopped_early(job, signals)
        or preflight(job, run_dir, folder, signals)
        or stopped_early(job, signals)
        or attempt(words, job, number, folder, run_dir, before, signals)
    )
    attempts.ended(
        run_dir,
        number,
        outcome=ending.outcome,
        exit_code=ending.exit_code,
        cause=ending.cause,
        step=last_step(run_dir),
        node=ending.node,
        diverged_at=ending.diverged_at,
    )
    tell(run_dir, number, ending, folder)
    return ending


def stopped_early(job: Job, signals: Signals) -> Ending | None:
    """The ending of an attempt that was asked to stop before its ranks were started; None if it was not."""
    signals.look(job)
    if signals.stop is None:
        return None
    if signals.time_is_up:
        return replace(no_time(signals.stop), trained=False)
    return Ending("stopped", None, f"{signals.stop}: before training began", trained=False)


def attempt(
    words: Sequence[str], job: Job, number: int, folder: Path, run_dir: Path, before: int, signals: Signals
) -> Ending:
    """Train on all ranks until that ends, one way or another."""
    address, port = rendezvous(job.name, number, os.environ, lambda: slurm_job.node_address(job.nodes[0]))
    say(f"== attempt {number} from step {before}: ranks meet at {address} port {port}; logs in {folder}")
    environment = {**os.environ, "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    if len(job.nodes) > 1:
        environment[PEER] = slurm_job.node_address(job.nodes[-1])
    output = str(folder).replace("\\", "\\\\").replace("%", "%%")
    command = srun_command(
        job, ["-m", "launch.slurm.rank_main", str(folder), "--", "train", *words], f"--output={output}/%N-rank-%5t.log"
    )
    watched = run_step(command, environment, job.nodes, lambda: log_of(folder, 0), lambda: signals.look(job))
    signals.note_end(job)
    note = read_note(folder)
    stop, first = signals.stop, min((failure.time for failure in watched.failures), default=time.time())
    if stop is None and note.get("asked") and note["asked"] < first:
        stop = "its ranks were asked by a signal, as at a preemption"
    record = outcome_record.read_outcome(outcome_file(folder))
    return judge(
        Facts(
            folder=folder,
            exit_code=watched.exit_code,
            rank_0=note.get("code"),
            record=record,
            failures=tuple(watched.failures),
            stuck=watched.stuck,
            stop=stop,
            time_is_up=signals.time_is_up,
            made_steps=made_steps(record, last_step(run_dir) > before),
            slurm_ends=signals.slurm_ends,
        )
    )


def made_steps(record: outcome_record.OutcomeRecord | None, recorded: bool) -> bool:
    """Whether an attempt made a step: its ranks know best, else it is whether one was `recorded`, as only some are."""
    return recorded if record is None or record.steps_made is None else record.steps_made > 0


def preflight(job: Job, run_dir: Path, folder: Path, signals: Signals) -> Ending | None:
    """A look at every node; None where all are good."""
    gpus = [f"--gpus={job.gpus_per_node}"] if job.gpus_per_node else []
    command = srun_command(job, ["-m", "launch.nodes.preflight", f"--run-dir={run_dir}", *gpus], per_node=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = done.stdout.splitlines()
    said = [line for line in lines if not line.startswith(("{", "srun: "))]
    sys.stdout.write("".join(line + "\n" for line in said))
    if done.returncode == 0:
        return None
    (folder / "preflight.log").write_text(done.stdout, encoding="utf-8")
    signals.note_end(job)
    if signals.slurm_ends:
        lost = "node fail" in signals.slurm_ends
        return Ending("lost" if lost else "stopped", None, f"{signals.slurm_ends} before training began", trained=False)
    named = next((line for line in lines if line.startswith('{"bad_nodes": ["')), None)
    told = [line for line in said if line.startswith("preflight: ")] or lines[-1:] or ["preflight: failed"]
    node = json.loads(named)["bad_nodes"][0] if named else None
    return Ending(outcome_of(done.returncode), done.returncode, told[-1], node, trained=False)


def settle_last(run_dir: Path, job: Job) -> None:
    """Write down the end of an attempt that nobody saw; raises UserError where it goes on in another job."""
    done = attempts.read_attempts(run_dir)
    if not done or done[-1].ended is not None or done[-1].began is None:
        return
    number, began = done[-1].number, done[-1].began
    if began.job is not None and began.job != job.name and slurm_job.is_alive(began.job):
        raise RunInUse(f"run.dir={str(run_dir)!r}: job {began.job} trains it; wait for it, or choose another run.name")
    ending = unseen_end(attempts.log_folder(run_dir, number), why_slurm_ends())
    attempts.ended(
        run_dir,
        number,
        outcome=ending.outcome,
        exit_code=ending.exit_code,
        cause=ending.cause,
        step=last_step(run_dir),
    )
    say(f"== attempt {number} {ending.outcome}: {ending.cause}")


def unseen_end(folder: Path, slurm_ended: str | None) -> Ending:
    """The ending of an attempt whose supervisor was killed: what the ranks wrote down, or else Slurm."""
    record = outcome_record.read_outcome(outcome_file(folder))
    code = record.exit_code if record is not None else read_note(folder).get("code")
    if code in (ExitCode.DONE, ExitCode.STOPPED):
        return Ending(outcome_of(code), code, "finished" if code == ExitCode.DONE else "stopped and saved")
    if slurm_ended is not None and "node fail" not in slurm_ended:
        return Ending("interrupted", code, f"{slurm_ended} before it could save: {LAST_CHECKPOINT}")
    unseen = "its job ended unseen, with its first node or in a grace shorter than a save"
    return Ending("lost", code, f"{unseen}: {LAST_CHECKPOINT}")


def conclude(job: Job, decision: Decision, ended: attempts.Ended | None, ends_at: float) -> int:
    """Queue the job again, or not; returns the exit code."""
    code = 1 if ended is None or ended.exit_code is None else ended.exit_code
    if not decision.restart:
        if code:
            say(f"   not started again: {decision.why}")
        return code
    exclude = decision.exclude
    if exclude and not slurm_job.can_do_without(job, exclude):
        say(f"   {' '.join(exclude)}: failed repeatedly, but too few nodes would be left without")
        exclude = ()
    elsewhere = f", without {' '.join(exclude)}, which failed repeatedly" if exclude else ""
    after = f" in {decision.wait_seconds:.0f} s" if decision.wait_seconds else ""
    refusal = slurm_job.requeue(
        job.name,
        wait_seconds=decision.wait_seconds,
        exclude=exclude,
        until=ends_at - LAST_SECONDS,
        waiting=lambda said: say(
            f"   Slurm does not queue it again yet ({said}): it is asked again as long as the job has time"
        ),
    )
    if refusal:
        say(f"   Slurm does not queue it again ({refusal}): sbatch the same command to continue")
        return code
    say(f"   queued again{after}{elsewhere}: {decision.why}")
    return ExitCode.DONE


def tell(run_dir: Path, number: int, ending: Ending, folder: Path) -> None:
    """The end of an attempt, for the end of the job's log."""
    code = "" if ending.exit_code is None else f", exit code {ending.exit_code}"
    say(f"== attempt {number} {ending.outcome}{code}, after step {last_step(run_dir)}: {ending.cause}")
    shown = last_lines(ending.log, 12) if ending.outcome == "failed" and ending.log is not None else []
    if shown:
        say(f"   the end of {ending.log}:")
        for line in shown:
            say(f"     {line}")
    if ending.outcome not in ("finished", "stopped"):
        say(f"   logs of all ranks: {folder}")


def limits_of(cluster: ClusterConfig) -> Limits:
    """What the cluster's settings allow."""
    return Limits(**{field.name: getattr(cluster, field.name) for field in fields(Limits)})


def last_step(run_dir: Path) -> int:
    """The last step on record."""
    from pretrain.tracking.metrics_file import METRICS_FILE

    for line in reversed(last_lines(run_dir / METRICS_FILE, 20)):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

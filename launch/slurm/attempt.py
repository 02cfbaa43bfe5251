"""One attempt of a job: checks, the training step on all ranks, and the record of how it ended."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import SYSTEM_FAULTS, UserError
from launch.nodes.rendezvous import rendezvous
from launch.slurm.job import SlurmJob
from launch.slurm.job_signals import Signals, job_end_since, say
from launch.slurm.outcome import (
    LAST_CHECKPOINT,
    AttemptFacts,
    AttemptOutcome,
    attempt_outcome,
    last_lines,
    log_of,
    no_time,
)
from launch.slurm.rank_main import PEER, read_note
from launch.slurm.slurm_messages import EndCause, JobEnd
from launch.slurm.srun import run_step, srun_command
from pretrain import slurm_client
from pretrain.config.errors import RunInUse
from pretrain.exit_codes import ExitCode, Outcome, outcome_of
from pretrain.outcome.record import OUTCOME_FILE, OutcomeRecord, read_record
from pretrain.run import attempts


def run_attempt(overrides: Sequence[str], job: SlurmJob, run_dir: Path, signals: Signals) -> AttemptOutcome:
    """Run an attempt; record it, and report its end in the job's log."""
    number, before = attempts.next_attempt(run_dir), last_step(run_dir)
    folder = attempts.log_folder(run_dir, number)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if error.errno in SYSTEM_FAULTS:
            raise
        raise UserError(
            f"run.dir={str(run_dir)!r}: {folder} cannot be created ({error.strerror})",
            "make room, or choose another run.dir",
        ) from None
    attempts.began(
        run_dir,
        number,
        job=job.name,
        restart=job.restarts,
        nodes=job.nodes,
        ranks=job.ranks,
        step=before,
        log_start=signals.begin_attempt(),
    )
    outcome = (
        stopped_early(job, signals)
        or check_nodes(job, run_dir, folder, signals)
        or stopped_early(job, signals)
        or train(overrides, job, number, folder, run_dir, before, signals)
    )
    record_end(run_dir, number, outcome)
    report_end(run_dir, number, outcome, folder)
    return outcome


def stopped_early(job: SlurmJob, signals: Signals) -> AttemptOutcome | None:
    """The outcome if the job was asked to stop before the ranks were started."""
    signals.look(job)
    if signals.stop is None:
        return None
    if signals.time_is_up:
        return replace(no_time(signals.stop), trained=False)
    return AttemptOutcome("stopped", None, f"{signals.stop}: before training began", trained=False)


def check_nodes(job: SlurmJob, run_dir: Path, folder: Path, signals: Signals) -> AttemptOutcome | None:
    """Run the preflight on every node; the outcome if it fails, None if all nodes are good."""
    gpus = [f"--gpus={job.gpus_per_node}"] if job.gpus_per_node else []
    command = srun_command(job, ["-m", "launch.nodes.preflight", f"--run-dir={run_dir}", *gpus], per_node=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = done.stdout.splitlines()
    shown = [line for line in lines if not line.startswith(("{", "srun: "))]
    sys.stdout.write("".join(line + "\n" for line in shown))
    if done.returncode == 0:
        return None
    (folder / "preflight.log").write_text(done.stdout, encoding="utf-8")
    signals.note_end(job)
    if signals.job_end is not None:
        outcome: Outcome = "lost" if signals.job_end.cause is EndCause.NODE_FAILURE else "stopped"
        return AttemptOutcome(outcome, None, f"{signals.job_end} before training began", trained=False)
    return preflight_outcome(done.returncode, lines)


def preflight_outcome(code: int, lines: Sequence[str]) -> AttemptOutcome:
    """The outcome of a preflight that failed, by its results: lines of JSON, {"bad_nodes": [...], "faults": [...]}."""
    results = [json.loads(line) for line in lines if line.startswith('{"bad_nodes"')]
    bad_nodes = [node for result in results for node in result["bad_nodes"]]
    faults = [fault for result in results for fault in result["faults"]]
    cause = (faults or list(lines[-1:]) or ["failed"])[-1]
    node = bad_nodes[0] if bad_nodes else None
    return AttemptOutcome(outcome_of(code), code, f"preflight: {cause}", node, trained=False)


def train(
    overrides: Sequence[str], job: SlurmJob, number: int, folder: Path, run_dir: Path, before: int, signals: Signals
) -> AttemptOutcome:
    """Train on all ranks until that ends, one way or another."""
    address, port = rendezvous(job.name, number, os.environ, lambda: slurm_client.node_address(job.nodes[0]))
    say(f"== attempt {number} from step {before}: ranks meet at {address} port {port}; logs in {folder}")
    environment = {**os.environ, "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    if len(job.nodes) > 1:
        environment[PEER] = slurm_client.node_address(job.nodes[-1])
    output = str(folder).replace("\\", "\\\\").replace("%", "%%")
    arguments = ["-m", "launch.slurm.rank_main", str(folder), "--", "train", *overrides]
    command = srun_command(job, arguments, f"--output={output}/%N-rank-%5t.log")
    watched = run_step(command, environment, job.nodes, lambda: log_of(folder, 0), lambda: signals.look(job))
    signals.note_end(job)
    note = read_note(folder)
    stop, first = signals.stop, min((failure.time for failure in watched.failures), default=time.time())
    if stop is None and note.get("asked") and note["asked"] < first:
        stop = "its ranks were asked by a signal, as at a preemption"
    record = read_record(folder / OUTCOME_FILE)
    return attempt_outcome(
        AttemptFacts(
            folder=folder,
            exit_code=watched.exit_code,
            rank_0=note.get("code"),
            record=record,
            failures=tuple(watched.failures),
            stuck=watched.stuck,
            stop=stop,
            time_is_up=signals.time_is_up,
            made_steps=made_steps(record, last_step(run_dir) > before),
            job_end=signals.job_end,
        )
    )


def made_steps(record: OutcomeRecord | None, recorded: bool) -> bool:
    """Whether an attempt made a step: by its ranks' record, else by metrics.jsonl, in which steps may be left out."""
    return recorded if record is None or record.steps_made is None else record.steps_made > 0


def settle_last(run_dir: Path, job: SlurmJob) -> None:
    """Record the end of an attempt whose supervisor was killed; raises UserError if it runs in another job."""
    done = attempts.read_attempts(run_dir)
    if not done or done[-1].ended is not None or done[-1].began is None:
        return
    number, began = done[-1].number, done[-1].began
    if began.job is not None and began.job != job.name and slurm_client.is_alive(began.job):
        raise RunInUse(
            f"run.dir={str(run_dir)!r}: job {began.job} trains it", "wait for it, or choose another run.name"
        )
    job_end = job_end_since(began.log_start or 0) if began.job == job.name else None
    outcome = unseen_outcome(attempts.log_folder(run_dir, number), job_end)
    record_end(run_dir, number, outcome)
    say(f"== attempt {number} {outcome.outcome}: {outcome.cause}")


def unseen_outcome(folder: Path, job_end: JobEnd | None) -> AttemptOutcome:
    """The outcome of an attempt whose supervisor was killed, by the record of its ranks, else by Slurm's message."""
    record = read_record(folder / OUTCOME_FILE)
    code = record.exit_code if record is not None else read_note(folder).get("code")
    if code in (ExitCode.DONE, ExitCode.STOPPED):
        return AttemptOutcome(outcome_of(code), code, "finished" if code == ExitCode.DONE else "stopped and saved")
    if job_end is not None and job_end.cause is not EndCause.NODE_FAILURE:
        return AttemptOutcome("interrupted", code, f"{job_end} before it could save: {LAST_CHECKPOINT}")
    unseen = "its job ended unseen, with its first node or in a grace shorter than a save"
    return AttemptOutcome("lost", code, f"{unseen}: {LAST_CHECKPOINT}")


def record_end(run_dir: Path, number: int, outcome: AttemptOutcome) -> None:
    """Write the end of an attempt into attempts.jsonl."""
    attempts.ended(
        run_dir,
        number,
        outcome=outcome.outcome,
        exit_code=outcome.exit_code,
        cause=outcome.cause,
        step=last_step(run_dir),
        node=outcome.node,
        kind=outcome.kind,
        diverged_at=outcome.diverged_at,
    )


def report_end(run_dir: Path, number: int, outcome: AttemptOutcome, folder: Path) -> None:
    """Write the end of an attempt into the job's log."""
    code = "" if outcome.exit_code is None else f", exit code {outcome.exit_code}"
    say(f"== attempt {number} {outcome.outcome}{code}, after step {last_step(run_dir)}: {outcome.cause}")
    shown = last_lines(outcome.log, 12) if outcome.outcome == "failed" and outcome.log is not None else []
    if shown:
        say(f"   the end of {outcome.log}:")
        for line in shown:
            say(f"     {line}")
    if outcome.outcome not in ("finished", "stopped"):
        say(f"   logs of all ranks: {folder}")


def last_step(run_dir: Path) -> int:
    """The last step on record."""
    from pretrain.tracking.metrics_file import METRICS_FILE

    for line in reversed(last_lines(run_dir / METRICS_FILE, 20)):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0

"""Failures of many kinds, and the decisions that supervision takes on them: `python -m tests.support.decisions`.

Every failure goes the whole way: an exception or the state of the ranks, the report, the record on the disk, the
outcome of the attempt, attempts.jsonl, the requeue decision. It prints one JSON object: scenario -> its decisions and
message.
"""

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

if "--reworded" in sys.argv:
    import tests.support.reworded  # noqa: F401

from data_pipeline.errors import NoSpace, UserError
from launch.slurm.attempt import preflight_outcome, record_end, unseen_outcome
from launch.slurm.outcome import AttemptFacts, AttemptOutcome, attempt_outcome
from launch.slurm.requeue_policy import Limits, decide, stays
from launch.slurm.slurm_messages import failure_in, job_end_in
from launch.ssh.hosts import cause_of, code_of
from pretrain.config.errors import RunInUse, TrainingDiverged
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.watchdog import diagnose as reports
from pretrain.distributed.watchdog.rank_status import RankProcess, RankStatus, coordinates
from pretrain.distributed.watchdog.reported import report_of
from pretrain.exit_codes import ExitCode, outcome_of
from pretrain.outcome import record
from pretrain.outcome.failure import FailureReport, Stage
from pretrain.outcome.record import OUTCOME_FILE, VARIABLE, OutcomeRecord, read_record
from pretrain.run import attempts

LAYOUT = ParallelLayout(2, 1, 1)
RANKS = {rank: RankProcess(rank, coordinates(LAYOUT, rank), "ab"[rank], "m", 100 + rank) for rank in range(2)}
WAITS, READS = (RankStatus(waits, "file.py:1 f", 60, Stage.TRAINING, 7, "") for waits in (True, False))
END = "slurmstepd: error: *** JOB 7 ON a CANCELLED AT 2026-01-01T00:00:00{} ***"


def failed(report: FailureReport | None) -> OutcomeRecord:
    assert report is not None
    return record.failure(report)


def records() -> Iterator[tuple[str, OutcomeRecord | None]]:
    """The record of each kind of end."""
    errors = (
        ValueError("planted"),
        MemoryError(),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        UserError("seed=x"),
        RunInUse("held"),
        NoSpace("full"),
        OSError(errno.ENOSPC, "full"),
        TrainingDiverged("nan", step=12),
    )
    for error in errors:
        yield f"{type(error).__name__} in start-up", failed(report_of(error))
        yield f"{type(error).__name__} in step 3", failed(reports.report_error(RANKS[1], Stage.SAVING, 3, error))
    yield "diverged", failed(reports.report_left(RANKS[1], Stage.TRAINING, 3, TrainingDiverged("nan", step=12)))
    yield "died", failed(reports.diagnose(RANKS, {}, ended=[1]))
    yield "killed by the kernel", failed(reports.diagnose(RANKS, {}, ended=[1], kernel_kills=1))
    yield "unresponsive", failed(reports.diagnose(RANKS, {0: WAITS}, silent_seconds={1: 9}))
    yield "never joined", failed(reports.diagnose({**RANKS, 1: RankProcess(1, "", "", "", 0)}, {0: WAITS}))
    yield "stuck", failed(reports.diagnose(RANKS, {0: WAITS, 1: READS}))
    yield "deadlock", failed(reports.report_deadlock(RANKS, {0: WAITS, 1: WAITS}))
    yield "no progress", failed(reports.report_no_progress(RANKS[0], READS))
    yield "lost launcher", failed(reports.report_lost_launcher("a:1", Stage.TRAINING, 3))
    yield "lost rank 0", failed(reports.report_lost_rank_0("x", "a:1", Stage.TRAINING, 3, joined=True))
    yield "finished", record.success(ExitCode.DONE, "trained to step 9")
    yield "stopped", record.success(ExitCode.STOPPED, "asked to stop")
    yield "no record", None


def facts(folder: Path) -> Iterator[tuple[str, AttemptFacts]]:
    """Every record beside every state of the job."""
    nodes = ("a", "b")
    srun = {
        "killed": "srun: error: b: task 1: Killed",
        "raised": "srun: error: b: task 1: Exited with exit code 1",
        "node": "srun: error: Node failure on b",
        "signal": "srun: error: b: task 1: Terminated",
    }
    ends = {"": None, "preempted": " DUE TO PREEMPTION", "node failed": " DUE TO NODE FAILURE", "cancelled": ""}
    for name, of_ranks in records():
        path = folder / OUTCOME_FILE
        path.unlink(missing_ok=True)
        if of_ranks is not None:
            record.write_for_launcher(of_ranks, {VARIABLE: str(path)})
        for rank, node in enumerate(nodes):  # the logs have the message too, as on a cluster
            message = "" if of_ranks is None else of_ranks.message
            (folder / attempts.log_name(node, rank)).write_text(f"step 1/9\n12:00:00 {message}\n")
        for said, line in srun.items():
            for end, words in ends.items():
                failure = failure_in(line, nodes, 0.0)
                assert failure is not None
                job_end = None if words is None else job_end_in([END.format(words)])
                for made_steps in (True, False):
                    given = AttemptFacts(folder, 1, None, read_record(path), (failure,))
                    scenario = f"{name}, srun: {said}, job: {end}, steps: {made_steps}"
                    yield scenario, replace(given, made_steps=made_steps, job_end=job_end)


LIMITS = Limits(max_restarts=3, restart_window_minutes=60, backoff_seconds=30, exclude_after=2)


def decisions(folder: Path, number: int, outcome: AttemptOutcome) -> dict[str, object]:
    """All that follows from an outcome, for a first and for a second attempt that ends so."""
    run_dir = folder / f"run-{number}"
    for attempt in (1, 2):
        attempts.began(run_dir, attempt, job="7", restart=0, nodes=["a", "b"], ranks=2, step=0)
        record_end(run_dir, attempt, outcome)
    found: list[object] = []
    for count in (1, 2):
        decision = decide(attempts.read_attempts(run_dir)[:count], "7", LIMITS)
        here = stays(decision, outcome.outcome, ["a", "b"], trained=outcome.trained, seconds_left=None, start_seconds=1)
        found.append([decision.restart, decision.wait_seconds, decision.exclude, here])
    kept = {key: value for key, value in asdict(outcome).items() if key not in ("cause", "log")}
    return {"decisions": [kept, found], "message": outcome.cause}


def main() -> None:
    os.fsync = lambda _: None  # not what is tried here, and slow
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = [(scenario, attempt_outcome(of_attempt)) for scenario, of_attempt in facts(folder)]
        result = json.dumps({"bad_nodes": ["b"], "faults": ["x"]})
        every.append(("bad node", preflight_outcome(ExitCode.BAD_NODE, [result])))
        every.append(("unseen", unseen_outcome(folder / "nowhere", None)))
        for number, (scenario, outcome) in enumerate(every):
            found[scenario] = decisions(folder, number, outcome)
        for scenario, of_ranks in records():
            codes = {1: 137, 0: 1}
            code = code_of(codes, of_ranks)
            message = cause_of(codes, of_ranks, {}, {0: "a", 1: "b"})
            found[f"{scenario}, ssh"] = {"decisions": [code, outcome_of(code)], "message": message}
    sys.stdout.write(json.dumps(found, default=str))


if __name__ == "__main__":
    main()

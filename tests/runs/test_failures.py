"""One rank fails: every process ends soon; the last lines and the record name the rank, its stage and the cause."""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pretrain.outcome.failure import FailureKind, FailureReport, Stage
from pretrain.outcome.record import VARIABLE, read_record
from tests.support.hosts import held_port
from tests.support.parts import full_except
from tests.support.ranks import warm_parent
from tests.support.runs import SECONDS, LiveRun, Workplace, environment, planted, torchrun_command
from tests.support.warm import Request, WarmProcess

END_SECONDS = 60
TIMEOUT_SECONDS = 6
TIMEOUT = f"engine.timeout_minutes={TIMEOUT_SECONDS / 60}"

PLANT = """
import os

if os.environ.get("RANK") == "1":
    import data_pipeline.stream.loader as loader

    real_batches = loader.train_batches

    def train_batches(*args, **kwargs):
        for number, batch in enumerate(real_batches(*args, **kwargs), 1):
            if number == 3:
                {deed}
            yield batch

    loader.train_batches = train_batches
"""
"""A module that Python imports at its start, before anything of ours: rank 1 does something when it is asked for the
batch of step 3, which is before step 2 is computed."""

EARLY_PLANT = """
import os

if os.environ.get("RANK") == "1":
    import pretrain.commands.training_run

    def open_datasets(config):
        {deed}

    pretrain.commands.training_run.open_datasets = open_datasets
"""
"""The same, before the ranks have met."""

RANK_1 = r"rank 1 \(stage 0 of 1, tp 0, dp 1, host \S+, process \d+\)"
STAGE_1 = r"rank 1 \(stage 1 of 2, tp 0, dp 0, host \S+, process \d+\)"


@dataclass(frozen=True)
class Ended:
    """A failed run."""

    log: str
    """The log of all processes, without the launcher's own lines and summary."""
    seconds: float
    """From the failure to the end of the last process."""
    last: dict[int, str]
    """Rank -> the last line that it logged."""
    reason: str
    """The end of the launcher's summary."""
    report: FailureReport
    """The ranks' record, which is written for launchers and supervisors."""


def run_to_failure(
    place: Workplace,
    *overrides: str,
    deed: str = "pass",
    plant: str = PLANT,
    after_step: int = 2,
    act: Callable[[LiveRun, dict[int, psutil.Process]], object] = lambda run, ranks: None,
    torchrun: bool = False,
) -> Ended:
    """A run of two ranks in which rank 1 does the planted deed, or to which `act` does something after a step; returns
    when nothing of it is left. `torchrun` starts them where its own words or its store matter.
    """
    path = place.folder / "planted" / "sitecustomize.py"
    path.parent.mkdir()
    path.write_text(plant.format(deed=deed), encoding="utf-8")
    endless = ("train.max_steps=100000", "checkpoint.every_steps=0", "evaluation.every_steps=0")
    words = ("train", *place.train_overrides("run", *endless, *overrides))
    log, record = place.folder / "run.log", place.folder / "outcome.json"
    process: subprocess.Popen[bytes] | WarmProcess
    with log.open("wb") as stream, held_port() as port:
        if torchrun:
            command, variables = [*torchrun_command(2), *words], environment(planted(path, **{VARIABLE: str(record)}))
            process = subprocess.Popen(command, cwd=place.folder, env=variables, stdout=stream, stderr=stream)
        else:
            variables = environment({VARIABLE: str(record)})
            process = warm_parent().start(Request(words, place.folder, variables, log, log, 2, port, path))
        return follow(LiveRun(process, place.run_dir("run"), log), record, after_step, act)


def follow(
    run: LiveRun, record: Path, after_step: int, act: Callable[[LiveRun, dict[int, psutil.Process]], object]
) -> Ended:
    """Wait until a run has failed and all of its processes have ended."""
    ranks: dict[int, psutil.Process] = {}
    try:
        run.wait_for(lambda: len(run.ranks()) == 2)
        ranks = run.ranks()
        if after_step:
            run.wait_for_step(after_step)
        else:  # imports alone take long on a busy machine: not before the failure is reported
            run.wait_for(lambda: "planted" in run.log)
        act(run, ranks)
        began = time.monotonic()
        assert run.end() != 0
        while any(is_alive(rank) for rank in ranks.values()):
            assert time.monotonic() - began < SECONDS, run.log
            time.sleep(0.05)
        seconds, written = time.monotonic() - began, read_record(record)
        assert written is not None and written.failure is not None, run.log
        return Ended(said(run.log), seconds, last_lines(run.log), run.log.splitlines()[-2], written.failure)
    finally:
        for rank in ranks.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
        run.kill()


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def said(log: str) -> str:
    """Without torchrun's lines: it has its own words for a worker that ended."""
    before, _, _ = log.partition('Traceback (most recent call last):\n  File "<frozen runpy>"')
    return "".join(line for line in before.splitlines(keepends=True) if not re.match(r"[WE]\d{4} ", line)).rstrip()


def last_lines(log: str) -> dict[int, str]:
    """Rank -> the last line of the last message that it logged."""
    messages: dict[int, str] = {}
    speaker = 0
    for line in said(log).splitlines():
        found = re.match(r"\d\d:\d\d:\d\d (?:\[rank (\d+)\] )?(.*)", line)
        if found:
            speaker = int(found.group(1) or 0)
        messages[speaker] = found.group(2) if found else line
    return messages


def test_all_ranks_report_an_exception_with_its_step(place):
    ended = run_to_failure(place, "parallel.pp=2", deed="raise ValueError('planted')", after_step=1, torchrun=True)
    assert ended.seconds < END_SECONDS
    for rank in (0, 1):
        assert re.fullmatch(rf"{STAGE_1}: first failure in step 3: ValueError: planted", ended.last[rank]), ended.log
    assert ended.reason.endswith("ValueError: planted"), "the launcher's own words come after it"
    report = ended.report
    assert (report.kind, report.ranks, report.stage, report.step) == (FailureKind.EXCEPTION, (1,), Stage.TRAINING, 3)
    assert report.coordinates == "stage 1 of 2, tp 0, dp 0" and report.host
    # The fault has its traceback, what followed from it has none.
    assert ended.log.count("Traceback (most recent call last)") == 1
    assert "sitecustomize.py" in ended.log


def test_a_failure_before_rendezvous_is_reported(place):
    ended = run_to_failure(place, plant=EARLY_PLANT, deed="raise MemoryError('planted')", after_step=0)
    assert ended.seconds < END_SECONDS
    remedy = "lower train.micro_batch_size, set engine.recompute.granularity to selective or full, or raise engine.zero"
    assert "rank 1 failed" in ended.log and "MemoryError: planted" in ended.log
    assert (ended.report.kind, ended.report.stage) == (FailureKind.OUT_OF_MEMORY, Stage.START_UP)
    if 0 in ended.last:  # else the launcher's signal ended it earlier
        assert re.match(rf"rank 1 .*: first failure: out of memory: MemoryError: planted; {remedy}", ended.last[0]), (
            ended
        )


@pytest.mark.parametrize("victim", full_except([0, 1], [0]), ids=["the rank that holds the store", "another rank"])
def test_without_torchrun_a_rank_lost_before_rendezvous_is_named(place: Workplace, victim: int) -> None:
    path = place.folder / "planted" / "sitecustomize.py"
    path.parent.mkdir()
    path.write_text(EARLY_PLANT.replace('"1"', f'"{victim}"').format(deed="os.kill(os.getpid(), 9)"))
    words = ("train", *place.train_overrides("run", "engine.init_timeout_minutes=0.1"))  # engine.timeout_minutes is 30
    logs, ranks = [place.folder / f"{rank}.log" for rank in range(2)], []
    with held_port() as port:
        for rank, log in enumerate(logs):
            world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            variables = {**{name: str(value) for name, value in world.items()}, "MASTER_ADDR": "127.0.0.1"}
            ranks.append(
                warm_parent().start(Request(words, place.folder, environment(variables), log, log, 0, port, path))
            )
        assert ranks[1 - victim].wait(SECONDS) == 1 and ranks[victim].wait(SECONDS) == -9
    text = logs[1 - victim].read_text()
    message = (
        rf"rank {victim} .*: first failure: did not join the others \(.* slower than engine.init_timeout_minutes\)$"
    )
    assert re.search(message, text.rstrip().splitlines()[-1]), text


def test_a_killed_rank_is_named_by_the_others(place):
    ended = run_to_failure(place, act=lambda run, ranks: ranks[1].kill())
    assert ended.seconds < END_SECONDS
    assert re.fullmatch(rf"{RANK_1}: first failure: the process exited without an error .*", ended.last[0]), ended
    assert "Traceback" not in ended.log
    assert (ended.report.kind, ended.report.ranks) == (FailureKind.PROCESS_DIED, (1,))


def test_a_stopped_process_is_killed_and_named(place):
    ended = run_to_failure(place, TIMEOUT, "parallel.pp=2", act=lambda run, ranks: ranks[1].suspend())
    assert ended.seconds < END_SECONDS + TIMEOUT_SECONDS
    assert re.match(rf"{STAGE_1}: first failure: no sign of life for \d+ s \(killed, stopped", ended.last[0]), ended.log
    assert (ended.report.kind, ended.report.ranks) == (FailureKind.UNRESPONSIVE, (1,))


def test_a_stuck_rank_is_ended_with_its_stack(place):
    ended = run_to_failure(place, TIMEOUT, "parallel.pp=2", deed="import time; time.sleep(1000)", after_step=1)
    assert TIMEOUT_SECONDS - 1 < ended.seconds < END_SECONDS + TIMEOUT_SECONDS
    for rank in (0, 1):
        assert re.match(
            rf"{STAGE_1}: keeps the others waiting in step 3, outside of any collective: no movement for \d+ s at \S*"
            r"sitecustomize.py:12 train_batches, called from \S*pretrain/training/loop.py:\d+ run_loop",
            ended.last[rank],
        ), ended.log
    assert "import time; time.sleep(1000)" in ended.log
    assert (ended.report.kind, ended.report.ranks, ended.report.step) == (FailureKind.STUCK, (1,), 3)
    # Every thread of the culprit, in its own file.
    assert "MainThread:" in (place.run_dir("run") / "logs" / "rank-00001.log").read_text(encoding="utf-8")


def test_ranks_end_when_their_launcher_was_killed(place):
    ended = run_to_failure(place, act=lambda run, ranks: run.process.kill(), torchrun=True)
    assert ended.seconds < END_SECONDS
    for speaker in ("", r"\[rank 1\] "):
        words = rf"(?m)^[\d:]+ {speaker}the launcher at \S+, through which the ranks met, is gone$"
        assert re.search(words, ended.log), ended.log
    assert ended.report.kind is FailureKind.LAUNCHER_GONE

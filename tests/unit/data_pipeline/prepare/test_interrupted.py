"""Interrupted runs: no process survives, and the next run reuses the finished tasks and gives the same bytes and
counts."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import distributed
import psutil
import pytest

from data_pipeline.errors import DataError
from data_pipeline.prepare import dask as cluster_module
from data_pipeline.prepare import scan
from data_pipeline.prepare.clean_task import run_clean_task
from data_pipeline.shards.manifest import Manifest
from data_pipeline.storage import staged_folder
from data_pipeline.storage.task_store import TaskStore
from tests.support.corpus import make_texts, prepare_synthetic, write_jsonl
from tests.support.dirty import CHANGED, DROPPED, dirty_settings, write_dirty

TASK_BYTES = 4_000
SECONDS = 60
"""The timeout of every wait. Idle machines take a tenth of it."""

RUN = """
import functools, json, sys, time
from pathlib import Path
from data_pipeline.prepare import scan
from data_pipeline.prepare.clean_task import run_clean_task
from tests.support.corpus import prepare_synthetic
from tests.support.dirty import dirty_settings

def clean_slowly(seconds, *arguments):
    run_clean_task(*arguments)
    time.sleep(seconds)

if __name__ == "__main__":
    folder, corpus, inputs, scan.TASK_BYTES, seconds, how = map(json.loads, sys.argv[1:])
    scan.run_clean_task = functools.partial(clean_slowly, seconds)
    try:
        prepare_synthetic(Path(folder), inputs, how=how, **dirty_settings(Path(corpus)))
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


@dataclasses.dataclass(frozen=True)
class Whole:
    """A corpus, and the result of an uninterrupted run."""

    folder: Path
    inputs: list[Path]
    contents: dict[str, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    inputs = write_dirty(folder)
    prepare_synthetic(folder / "set", inputs, **dirty_settings(folder))
    return Whole(folder, inputs, contents(folder / "set"))


@pytest.fixture
def kept_work(monkeypatch):
    """Tasks have the same size as in RUN, and the task store is kept for inspection."""
    monkeypatch.setattr(scan, "TASK_BYTES", TASK_BYTES)
    monkeypatch.setattr(staged_folder, "SECONDS_WORTH_KEEPING", 0.0)
    monkeypatch.setattr(TaskStore, "remove", lambda work: None)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def finished(folder):
    """The time at which each task finished."""
    return {path.name: path.stat().st_mtime_ns for path in folder.with_suffix(".work").glob("*.json")}


def start(tmp_path, whole, cwd=None, task_bytes=TASK_BYTES, seconds=0.05, **how):
    """Start RUN with at least this long for each task, in its own process group as under a terminal."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    words = (str(tmp_path / "set"), str(whole.folder), list(map(str, whole.inputs)), task_bytes, seconds, how)
    return subprocess.Popen(
        [sys.executable, script, *map(json.dumps, words)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A process started in the background by a shell would ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(happened, process=None):
    limit = time.monotonic() + SECONDS
    while not happened():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit, f"nothing seen for {SECONDS} s"
        time.sleep(0.01)


def fork_server_of(process):
    """The fork server's process; None if it has not started."""
    children = psutil.Process(process.pid).children()
    return next((child for child in children if "multiprocessing.forkserver" in " ".join(child.cmdline())), None)


def assert_finished_by_another_run(folder, whole, **how):
    """Another run gives the same bytes by running only the unfinished tasks."""
    before = finished(folder)
    assert len(before) >= 3
    prepare_synthetic(folder, whole.inputs, how=how, **dirty_settings(whole.folder))
    after = finished(folder)
    assert len(after) > len(before) and {name: after[name] for name in before} == before
    assert contents(folder) == whole.contents
    corpus = Manifest.load(folder).corpus
    assert (corpus.dropped, corpus.changed) == (DROPPED, CHANGED), "counted once, by whichever run"


@pytest.mark.parametrize("victim", ["worker", "fork server", "driver"])
@pytest.mark.usefixtures("kept_work")
def test_after_a_kill_the_next_run_reuses_finished_tasks(tmp_path, whole, victim):
    process = start(tmp_path, whole, num_workers=2)
    wait_until(lambda: len(finished(tmp_path / "set")) >= 3, process)
    server = fork_server_of(process)
    family = [server, *server.children()]
    assert len(family) == 3
    os.kill({"worker": family[1].pid, "fork server": server.pid, "driver": process.pid}[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode != 0 and not (tmp_path / "set").exists()
    if victim != "driver":
        assert "a worker process was killed, as the system does when memory runs out\n" in errors
        assert "the finished tasks are kept" in errors
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert_finished_by_another_run(tmp_path / "set", whole, num_workers=1)


@pytest.mark.parametrize(
    ("task_bytes", "seconds", "num_finished"),
    [
        pytest.param(TASK_BYTES, 0.05, 0, id="at the start"),
        pytest.param(TASK_BYTES, 0.05, 3, id="all at work"),
        pytest.param(10**9, 2.0, 3, id="the third of three pieces in work"),
    ],
)
def test_ctrl_c_ends_all_processes_without_output(tmp_path, whole, task_bytes, seconds, num_finished):
    process = start(tmp_path, whole, task_bytes=task_bytes, seconds=seconds, num_workers=2)
    wait_until(lambda: fork_server_of(process) and len(finished(tmp_path / "set")) >= num_finished, process)
    time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert errors == "interrupted\n"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not (tmp_path / "set").exists() and len(finished(tmp_path / "set")) >= num_finished


def test_workers_import_the_same_modules_as_the_driver(tmp_path, whole):
    other = tmp_path / "elsewhere" / "data_pipeline"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('another data_pipeline')")
    process = start(tmp_path, whole, cwd=other.parent, num_workers=2)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert contents(tmp_path / "set") == whole.contents


def clean_while_another_fails(signs, work, key, task, config):
    """The first task of good.jsonl starts before that of bad.jsonl fails, and continues after it."""
    if Path(task[0].file.name).name == "bad.jsonl":
        wait_until((signs / "started").exists)
        try:
            run_clean_task(work, key, task, config)
        finally:
            (signs / "failed").touch()
    elif not (signs / "started").exists():
        (signs / "started").write_text(key)
        wait_until((signs / "failed").exists)
        time.sleep(0.3)
        run_clean_task(work, key, task, config)
    else:
        run_clean_task(work, key, task, config)


@pytest.mark.usefixtures("kept_work")
def test_a_failing_run_keeps_the_tasks_that_finish(tmp_path, monkeypatch):
    texts = make_texts(60)
    inputs = [write_jsonl(tmp_path / "bad.jsonl", texts[:1]), write_jsonl(tmp_path / "good.jsonl", texts[1:])]
    prepare_synthetic(tmp_path / "other", inputs)
    whole = inputs[0].read_bytes()
    inputs[0].write_bytes(whole + b"{broken\n")
    in_turn = functools.partial(clean_while_another_fails, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"bad.jsonl:2: not a JSON object"):
        patch.setattr(scan, "run_clean_task", in_turn)
        prepare_synthetic(tmp_path / "set", inputs, num_workers=2)
    assert not (tmp_path / "set").exists()
    before = finished(tmp_path / "set")
    assert f"{(tmp_path / 'started').read_text()}.json" in before
    inputs[0].write_bytes(whole)
    prepare_synthetic(tmp_path / "set", inputs)
    after = finished(tmp_path / "set")
    assert {name: after[name] for name in before} == before
    without_times = [{**contents(tmp_path / name), "inputs.json": b""} for name in ("set", "other")]
    assert without_times[0] == without_times[1]


@pytest.fixture(scope="module")
def cluster():
    environment = {"PYTHONPATH": str(Path.cwd())}
    # Dask asks this long for a result that was on the killed worker.
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "5s"}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, env=environment) as found,
    ):
        yield found


@pytest.mark.usefixtures("kept_work")
def test_after_a_killed_dask_driver_another_continues(tmp_path, whole, cluster):
    how = {"executor": "dask", "dask_scheduler": cluster.scheduler_address}
    process = start(tmp_path, whole, **how)
    wait_until(lambda: len(finished(tmp_path / "set")) >= 3, process)
    process.kill()
    process.communicate(timeout=SECONDS)
    assert not (tmp_path / "set").exists()
    assert_finished_by_another_run(tmp_path / "set", whole, **how)


def test_losing_a_dask_worker_does_not_change_a_byte(tmp_path, whole, cluster, monkeypatch):
    monkeypatch.setattr(scan, "TASK_BYTES", TASK_BYTES)
    victim = min(worker.pid for worker in cluster.workers.values())

    def kill_when_something_is_done() -> None:
        wait_until(lambda: finished(tmp_path / "set"))
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_something_is_done, daemon=True)
    killer.start()
    how = {"executor": "dask", "dask_scheduler": cluster.scheduler_address}
    prepare_synthetic(tmp_path / "set", whole.inputs, how=how, **dirty_settings(whole.folder))
    killer.join(1)
    assert not killer.is_alive(), "a worker was killed"
    assert contents(tmp_path / "set") == whole.contents


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (None, "prepare.dask_scheduler=null: prepare.executor=dask needs the scheduler's address"),
        (
            "nowhere.json",
            "prepare.dask_scheduler=nowhere.json: the file does not exist\n  hint: start the scheduler first",
        ),
        (
            "tcp://127.0.0.1:9",
            r"prepare.dask_scheduler=tcp://127.0.0.1:9: cannot be reached \(.*\)\n  hint: start the scheduler first",
        ),
    ],
)
def test_a_missing_scheduler_is_named(tmp_path, monkeypatch, scheduler, message):
    monkeypatch.setattr(cluster_module, "SECONDS_TO_CONNECT", 1)
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(3))
    with pytest.raises(DataError, match=message):
        prepare_synthetic(tmp_path / "set", [source], how={"executor": "dask", "dask_scheduler": scheduler})
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]

"""Tasks given to an executor: how many at once, when results are handled, and what a failure ends."""

import concurrent.futures
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.prepare import dataset as prepare_module
from data_pipeline.prepare import executors
from data_pipeline.prepare.executors import InlineExecutor, run_tasks
from data_pipeline.storage.task_store import TaskStore
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from tests.support.corpus import make_texts, prepare_config, prepare_synthetic, write_jsonl


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ({"num_workers": 3}, 3),
        ({"num_workers": None}, len(os.sched_getaffinity(0))),
        ({"executor": "slurm", "num_workers": None}, 1),
        ({"executor": "dask", "num_workers": 3}, None),
    ],
)
def test_process_count_is_known_except_for_dask_clusters(how, number):
    assert executors.num_processes(prepare_config(**how)) == number


@pytest.mark.parametrize("length", [executors.MAX_TMPDIR_BYTES - 1, executors.MAX_TMPDIR_BYTES, 200])
def test_workers_start_with_any_length_of_tmpdir(length):
    program = (
        "from data_pipeline.prepare.executors import local_executor\n"
        "with local_executor(2) as executor:\n    print(executor.submit(abs, -3).result())"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / ("x" * (length - len(short) - 1))
        folder.mkdir()
        environment = {**os.environ, "TMPDIR": str(folder)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
        assert len(str(folder)) == length and not list(folder.iterdir())


@pytest.mark.parametrize("num_workers", [1, 4])
def test_each_process_gets_its_share_of_the_text_size(tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(prepare_module, "open_executor", lambda config: contextlib.nullcontext(InlineExecutor()))
    reported = []
    monkeypatch.setattr(SentencePieceTokenizer, "expect", lambda self, num_chars: reported.append(num_chars))
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(40))
    manifest = prepare_synthetic(tmp_path / "set", [source], num_workers=num_workers)
    assert reported == [manifest.corpus.num_bytes // num_workers]


def test_finished_tasks_are_handled_in_order_while_others_run(tmp_path):
    work, given, second_may_end = TaskStore(tmp_path), [], threading.Event()

    def do(work, key):
        if key == "b":
            assert second_may_end.wait(60), "nothing was handed on before all were finished"
        work.finish(key, {}, ())

    def take(key):
        given.append((key, [other for other in "abc" if work.record(other) is None]))
        second_may_end.set()

    work.finish("d", {}, ())  # finished by an earlier run
    sizes = dict.fromkeys("abcd", 1)
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        run_tasks(executor, work, "x", dict.fromkeys(sizes, ()), do, sizes, ["d", "a", "b", "d", "c"], take)
    assert [key for key, _ in given] == ["d", "a", "b", "d", "c"]
    assert "b" in given[0][1] and given[-1][1] == []


def test_workers_start_before_finished_tasks_are_handled(tmp_path):
    work, started = TaskStore(tmp_path), threading.Event()
    for key in "ab":
        work.finish(key, {}, ())

    def do(work, key):
        started.set()
        work.finish(key, {}, ())

    sizes = dict.fromkeys("abc", 1)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        run_tasks(
            executor, work, "x", dict.fromkeys(sizes, ()), do, sizes, "abc", lambda key: started.wait(60) or 1 / 0
        )


class Noting(concurrent.futures.ThreadPoolExecutor):
    """Records what was submitted."""

    def __init__(self, num_threads):
        super().__init__(num_threads)
        self.futures = []

    def submit(self, fn, /, *args):
        self.futures.append(super().submit(fn, *args))
        return self.futures[-1]


def test_a_failure_is_raised_before_more_results_are_handled(tmp_path):
    work, given, handing_on, reported = TaskStore(tmp_path), [], threading.Event(), threading.Event()
    for key in "abcd":
        work.finish(key, {}, ())

    def do(work, key):
        handing_on.wait(60)
        raise DataError("planted")

    def take(key):
        (future,) = executor.futures
        future.add_done_callback(lambda _: reported.set())  # called after the callbacks that were added before
        handing_on.set()
        assert reported.wait(60)
        given.append(key)

    sizes = dict.fromkeys("abcde", 1)
    with Noting(1) as executor, pytest.raises(DataError, match="planted"):
        run_tasks(executor, work, "x", dict.fromkeys(sizes, ()), do, sizes, "abcde", take)
    assert given == ["a"]


def test_an_error_in_handling_a_result_ends_the_run(tmp_path):
    work, done = TaskStore(tmp_path), []

    def do(work, key):
        done.append(key)
        time.sleep(0.05)
        work.finish(key, {}, ())

    sizes = {f"{number:02}": 1 for number in range(60)}
    with concurrent.futures.ThreadPoolExecutor(1) as executor, pytest.raises(ZeroDivisionError):
        run_tasks(executor, work, "x", dict.fromkeys(sizes, ()), do, sizes, sizes, lambda key: 1 / 0)
    assert 0 < len(done) < 30, "the rest was not called off"


def finish(work, key):
    work.finish(key, {}, ())


class Holder(concurrent.futures.Executor):
    """Runs the oldest task when asked, and records how many tasks it held at most."""

    def __init__(self):
        self.held, self.most = [], 0

    def submit(self, fn, /, *args):
        future = concurrent.futures.Future()
        self.held.append((future, fn, args))
        self.most = max(self.most, len(self.held))
        return future

    def do_one(self):
        future, fn, args = self.held.pop(0)
        future.set_result(fn(*args))


def test_an_executor_holds_a_bounded_number_of_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "MAX_SUBMITTED", 5)
    monkeypatch.setattr(executors, "POLL_SECONDS", 0.0)
    holder, looks, given = Holder(), [], []

    def reported(work, key):
        """Finishes one more task whenever the driver asks for progress."""
        looks.append(key)
        if holder.held:
            holder.do_one()
        return 0

    monkeypatch.setattr(TaskStore, "progress", reported)
    sizes = {f"{number:03}": 1 for number in range(100)}
    run_tasks(holder, TaskStore(tmp_path), "x", dict.fromkeys(sizes, ()), finish, sizes, sizes, given.append)
    assert given == list(sizes)
    assert holder.most == 5
    assert len(looks) <= 5 * len(sizes)


def test_an_inline_result_is_handled_before_the_next_task(tmp_path):
    events, sizes = [], dict.fromkeys("abc", 1)

    def do(work, key):
        events.append(f"{key} is made")
        work.finish(key, {}, ())

    def take(key):
        events.append(f"{key} is taken")

    run_tasks(InlineExecutor(), TaskStore(tmp_path), "x", dict.fromkeys(sizes, ()), do, sizes, "abc", take)
    assert events == [f"{key} is {what}" for key in "abc" for what in ("made", "taken")]


def test_no_task_starts_after_an_inline_failure(tmp_path):
    started_keys, sizes = [], dict.fromkeys("abc", 1)

    def do(work, key):
        started_keys.append(key)
        raise DataError("planted")

    with pytest.raises(DataError, match="planted"):
        run_tasks(InlineExecutor(), TaskStore(tmp_path), "x", dict.fromkeys(sizes, ()), do, sizes)
    assert started_keys == ["a"]

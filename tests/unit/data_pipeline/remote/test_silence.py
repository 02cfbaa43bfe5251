"""An unresponsive server delays a run for the configured timeout and no longer, over every protocol."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from data_pipeline.errors import DataError
from data_pipeline.remote import call_timeout, fsspec_store
from data_pipeline.remote.transfer import blocks, read_small
from data_pipeline.remote.transport import connect
from data_pipeline.sources.files import find_files
from tests.support.corpus import cache_config
from tests.support.object_stores import SCHEMES, set_environment

CONTENT = bytes(range(256)) * 4096
SOON = 30.0
"""Seconds: less than the minute that Sleepy sleeps and clients wait, and more than a busy machine needs."""


class Sleepy(MemoryFileSystem):
    """A file system that never answers within the timeout."""

    protocol = "sleepy"
    awake = threading.Event()
    sleeps_in: str | None = None
    seconds_per_byte = 0.0
    seconds: ClassVar[list[float]] = []
    """The time that each request took, on a clock that only requests move."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("sleepy://"))

    def info(self, path, **options):
        self.sleep("info")
        return super().info(path, **options)

    def find(self, path, **options):
        self.sleep("find")
        return super().find(path, **options)

    def glob(self, path, **options):
        self.sleep("glob")
        return super().glob(path, **options)

    def _open(self, path, mode="rb", **options):
        self.sleep("open")
        return SleepyFile(self, path, super()._open(path, mode).getvalue())

    def sleep(self, what: str) -> None:
        if what == self.sleeps_in:
            self.awake.wait(60)


class SleepyFile(MemoryFile):
    def read(self, size: int = -1) -> bytes:
        self.fs.sleep("read")
        block = super().read(size)
        self.fs.seconds.append(len(block) * self.fs.seconds_per_byte)
        return block

    def close(self) -> None:
        self.fs.sleep("close")


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Sleepy]]:
    fsspec.register_implementation("sleepy", Sleepy, clobber=True)
    fsspec.filesystem("memory").pipe_file("/bucket/a.txt", CONTENT)
    monkeypatch.setattr(Sleepy, "awake", threading.Event())
    monkeypatch.setattr(Sleepy, "sleeps_in", None)
    of_others = set(threads())
    monkeypatch.setattr(call_timeout, "_idle", [])
    yield Sleepy
    Sleepy.awake.set()
    ends(lambda: len(set(threads()) - of_others) == len(call_timeout._idle))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "file-system"]


def ends(true) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("what", ["file", "folder", "pattern"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_unresponsive_store_is_named(silent, monkeypatch, tmp_path, scheme, what):
    set_environment(monkeypatch, scheme, silent)
    impatient = cache_config(tmp_path, timeout_seconds=0.3, retries=1)
    url = f"{scheme}://bucket/" + {"file": "a.txt", "folder": "", "pattern": "*.txt"}[what]
    with soon(), pytest.raises(DataError) as reported:
        find_files([url], [], impatient)
    assert reported.value.message == f"{url}: cannot be listed: no answer in time, tried 2 times"
    with soon(), pytest.raises(DataError) as reported:
        read_small(f"{scheme}://bucket/a", impatient)
    assert reported.value.message == f"{scheme}://bucket/a: cannot be read: no answer in time, tried 2 times"


FETCH = """
import sys
from data_pipeline.errors import DataError
from data_pipeline.remote.transfer import read_small
from tests.support.corpus import cache_config
try:
    read_small(sys.argv[1], cache_config("unused", timeout_seconds=0.3, retries=1))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_process_can_exit_while_a_store_is_unresponsive(silent, monkeypatch, scheme):
    set_environment(monkeypatch, scheme, silent)
    process = subprocess.Popen([sys.executable, "-c", FETCH, f"{scheme}://bucket/a"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "no answer in time, tried 2 times" in process.stdout.readline()
    with soon():
        assert process.wait(SOON) == 0


@pytest.mark.parametrize("where", ["info", "open", "read"])
def test_any_unresponsive_file_system_is_retried(sleepy, cache, where):
    sleepy.sleeps_in = where
    wakes = threading.Timer(0.5, lambda: setattr(sleepy, "sleeps_in", None))
    wakes.start()
    impatient = cache_config("unused", timeout_seconds=0.2, retries=10)
    assert b"".join(blocks("sleepy://bucket/a.txt", impatient)) == CONTENT
    wakes.join()


@pytest.mark.parametrize(("where", "name"), [("find", "bucket"), ("glob", "bucket/*.txt")])
def test_a_listing_has_a_longer_timeout(sleepy, where, name):
    impatient = cache_config("unused", timeout_seconds=0.1, retries=0)
    sleepy.sleeps_in = where
    with soon(), pytest.raises(DataError, match="cannot be listed: no answer in time, tried 1 times"):
        find_files([f"sleepy://{name}"], ["*.txt"], impatient)
    patient = cache_config("unused", timeout_seconds=1.0, retries=0)
    threading.Timer(1.5, sleepy.awake.set).start()
    assert [file.name for file in find_files([f"sleepy://{name}"], ["*.txt"], patient)]


def test_closing_an_unresponsive_file_has_a_timeout(sleepy):
    stream = connect("sleepy://bucket/a.txt", 0, 0.2)
    sleepy.sleeps_in = "close"
    with soon():
        stream.close()


def test_abandoned_threads_are_bounded_and_end_with_their_calls(sleepy, monkeypatch):
    monkeypatch.setattr(call_timeout, "_slots", threading.Semaphore(3))
    before = set(threads())
    sleepy.sleeps_in = "read"
    for _ in range(2):
        with soon(), pytest.raises(DataError, match="no answer in time, tried 4 times"):
            read_small("sleepy://bucket/a.txt", cache_config("unused", timeout_seconds=0.05, retries=3))
    ends(lambda: len(set(threads()) - before) == 3)
    sleepy.sleeps_in = None
    sleepy.awake.set()
    ends(lambda: not set(threads()) - before)
    assert read_small("sleepy://bucket/a.txt", cache_config("unused")) == CONTENT


def test_one_thread_is_reused(sleepy):
    for _ in range(3):
        assert read_small("sleepy://bucket/a.txt", cache_config("unused")) == CONTENT
        assert len(call_timeout._idle) == 1


def test_a_forked_process_starts_its_own_threads(sleepy):
    config = cache_config("unused", timeout_seconds=SOON, retries=0)
    assert read_small("sleepy://bucket/a.txt", config) == CONTENT
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if read_small("sleepy://bucket/a.txt", config) == CONTENT else 1)
        os._exit(2)
    assert os.waitpid(process, 0)[1] == 0


def test_requests_shrink_on_a_slow_connection(sleepy, monkeypatch):
    monkeypatch.setattr(fsspec_store, "FIRST_REQUEST_BYTES", 1 << 14)
    monkeypatch.setattr(fsspec_store, "REQUEST_BYTES", len(CONTENT))
    monkeypatch.setattr(fsspec_store, "time", SimpleNamespace(monotonic=lambda: sum(sleepy.seconds)))
    monkeypatch.setattr(sleepy, "seconds", [])
    monkeypatch.setattr(sleepy, "seconds_per_byte", 3.0 * SOON / len(CONTENT))
    assert b"".join(blocks("sleepy://bucket/a.txt", cache_config("unused", timeout_seconds=SOON, retries=0))) == CONTENT
    assert len(sleepy.seconds) > 3 and SOON / 16 < max(sleepy.seconds) < SOON

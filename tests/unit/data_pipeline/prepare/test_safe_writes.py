"""A dataset appears complete or not at all, whatever interrupts `prepare`."""

import fcntl
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.prepare import clean_task
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.storage.staged_folder import stage
from tests.support.corpus import (
    prepare_synthetic,
)
from tests.unit.data_pipeline.prepare.prepared_folder import UNTOLD, contents


def test_no_space_left_is_one_clear_error(source, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(
            DataError, match=r"set: no space left on the disk; nothing unfinished was kept\n  hint: free some"
        ):
            prepare_synthetic(tmp_path / "data" / "set", [source])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_path_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.path=.*file/set: cannot be written"):
        prepare_synthetic(tmp_path / "file" / "set", [source])


KILLED = """
import os, signal, sys
from tests.support.corpus import prepare_synthetic
import pathlib, data_pipeline.shards.manifest as manifest, data_pipeline.tokenizers.loading
writes = 0
real = os.fsync
def fsync(descriptor):
    global writes
    writes += 1
    if writes == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
prepare_synthetic(pathlib.Path(sys.argv[1]), [sys.argv[2]])
"""


@pytest.mark.parametrize("fsync", [2, 6, 12, 20])
def test_after_a_kill_another_run_finishes(prepared, source, tmp_path, fsync, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "set"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(source), str(fsync)], cwd=Path.cwd())
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "set.work").exists()
    with pytest.raises(DataError, match="not prepared"):
        PackedDataset.open(folder, "train")
    prepare_synthetic(folder, [source])
    assert contents(folder, UNTOLD) == contents(prepared, UNTOLD)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]
    assert ("reusing the one that an interrupted run trained" in caplog.text) == (fsync > 7)


def test_a_kill_between_the_two_renames_loses_nothing(source, tmp_path):
    folder = tmp_path / "set"
    prepare_synthetic(folder, [source])
    good = contents(folder)
    folder.rename(tmp_path / "set.replaced")
    prepare_synthetic(folder, [source])
    assert contents(folder) == good and not (tmp_path / "set.replaced").exists()


def test_two_runs_at_once_exclude_each_other(source, tmp_path):
    with stage(tmp_path / "set") as staged:
        (staged / "x").write_text("mine")
        with pytest.raises(DataError, match=r"set.partial: another `pretrain prepare` is writing it"):
            prepare_synthetic(tmp_path / "set", [source])
    assert contents(tmp_path / "set") == {"x": b"mine"}


def test_locks_are_files_open_for_writing_and_are_removed(source, tmp_path, monkeypatch):
    """NFS does not share a lock on a folder with other hosts, and refuses one on a file opened for reading."""
    lock, kinds = fcntl.flock, []

    def seen(file, operation):
        kinds.append((stat.S_ISREG(os.fstat(file.fileno()).st_mode), file.writable()))
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", seen)
    for left_by_a_kill in ("set.partial.lock", "set.work.lock"):
        (tmp_path / left_by_a_kill).touch()
    prepare_synthetic(tmp_path / "set", [source])
    assert len(kinds) == 2 and set(kinds) == {(True, True)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_file_changed_while_it_is_read_is_named(source, tmp_path, monkeypatch):
    copy = tmp_path / "in.jsonl"
    copy.write_bytes(source.read_bytes())
    real = clean_task.content_hash

    def changing(text):
        os.utime(copy, ns=(1, 1))
        return real(text)

    monkeypatch.setattr(clean_task, "content_hash", changing)
    with pytest.raises(
        DataError, match=r"in.jsonl: was changed while it was read\n  hint: run `pretrain prepare` again"
    ):
        prepare_synthetic(tmp_path / "set", [copy])
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]

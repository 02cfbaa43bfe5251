"""A run's folder is its own from the first step to the last."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.errors import RunError
from pretrain.run.lock import LOCK_FILE, hold_run_folder


def move(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def replace(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / LOCK_FILE).write_text("")


def put_a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize("lose", [move, shutil.rmtree, replace, put_a_file_in_its_place])
def test_a_held_folder_that_is_lost_is_refused(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    with hold_run_folder(folder) as check_ownership:
        check_ownership()
        lose(folder)
        with pytest.raises(RunError, match="is not the folder that this run started in"):
            check_ownership()


def test_a_disk_that_gives_no_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS without lockd, or Lustre without `flock`, do."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(RunError, match="No locks available"), hold_run_folder(tmp_path):
        pass


def test_a_held_folder_may_be_renamed_and_put_back(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with hold_run_folder(tmp_path / "other") as check_ownership:
        check_ownership()
        move(tmp_path / "run")
        (tmp_path / "away").rename(tmp_path / "run")
        check_ownership()


def test_a_deleted_lock_is_taken_again(tmp_path: Path) -> None:
    with hold_run_folder(tmp_path) as check_ownership:
        for _ in range(2):
            (tmp_path / LOCK_FILE).unlink()
            check_ownership()
            with pytest.raises(RunError, match="in use by another live process"), hold_run_folder(tmp_path):
                pass


def test_a_run_with_a_deleted_lock_yields_to_a_newer_run(tmp_path: Path) -> None:
    with hold_run_folder(tmp_path) as check_ownership:
        (tmp_path / LOCK_FILE).unlink()
        with hold_run_folder(tmp_path), pytest.raises(RunError, match="in use by another live process"):
            check_ownership()

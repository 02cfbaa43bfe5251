"""A run's folder is its own from the first step to the last."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.errors import RunError
from pretrain.run.folder import LOCK_FILE, hold_run_folder


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
    with hold_run_folder(folder) as still_held:
        still_held()
        lose(folder)
        with pytest.raises(RunError, match="is not the folder that this run began in"):
            still_held()


def test_a_disk_that_gives_no_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS without lockd, or Lustre without `flock`, do."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(RunError, match="No locks available"), hold_run_folder(tmp_path):
        pass


def test_a_held_folder_is_the_same_by_any_name_and_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with hold_run_folder(tmp_path / "other") as still_held:
        still_held()
        move(tmp_path / "run")
        (tmp_path / "away").rename(tmp_path / "run")
        still_held()


def test_a_lock_that_somebody_deleted_is_taken_again_and_keeps_others_out(tmp_path: Path) -> None:
    with hold_run_folder(tmp_path) as still_held:
        for _ in range(2):
            (tmp_path / LOCK_FILE).unlink()
            still_held()
            with pytest.raises(RunError, match="in use by another live process"), hold_run_folder(tmp_path):
                pass


def test_a_run_whose_lock_was_deleted_gives_way_to_one_that_began_there_since(tmp_path: Path) -> None:
    with hold_run_folder(tmp_path) as still_held:
        (tmp_path / LOCK_FILE).unlink()
        with hold_run_folder(tmp_path), pytest.raises(RunError, match="in use by another live process"):
            still_held()

"""A folder that appears whole or not at all: it is built beside its place and renamed into it."""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import NO_SPACE, DataError, NoSpace, WorkInterrupted
from data_pipeline.storage import output_paths
from data_pipeline.storage.atomic_write import sync_folder
from data_pipeline.storage.task_store import TaskStore

SECONDS_WORTH_KEEPING = 60.0
logger = logging.getLogger(__name__)


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder` to fill; when the block ends well it takes the place of `folder`.

    What an interrupted attempt left is removed first. If the block raises, nothing is left and `folder` is as before.
    Only one process may stage a folder at a time.
    """
    staged, replaced = output_paths.staged(folder), output_paths.replaced(folder)
    with _disk_errors(folder), _remove_new_parents(staged), _locked(staged):
        _recover(folder, replaced)
        for entry in staged.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield staged
            sync_folder(staged)
            if folder.exists():
                folder.replace(replaced)
            staged.replace(folder)
            sync_folder(folder.parent)
        except Exception:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def open_task_store(folder: Path) -> Iterator[TaskStore]:
    """Gives the folder of finished pieces for `folder`, with those that an interrupted attempt left.

    It is removed when the block ends well; when it raises too, unless it was interrupted or has more than
    SECONDS_WORTH_KEEPING in it: a mistake in the settings must not cost hours, nor leave crumbs behind.
    """
    work = TaskStore(output_paths.work(folder))
    with _disk_errors(folder), _remove_new_parents(work.path), _locked(work.path):
        try:
            yield work
        except BaseException as error:
            interrupted = isinstance(error, WorkInterrupted) or not isinstance(error, Exception)
            if work.age() > (0 if interrupted else SECONDS_WORTH_KEEPING):
                logger.info("%s: holds the finished pieces, from which the next run goes on", work.path)
            else:
                work.remove()
            raise
        work.remove()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What goes wrong in writing, in words."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise NoSpace(
                f"data.path={folder}: no space left on the disk, nothing unfinished was kept; free some, or choose a "
                "data.path on another disk"
            ) from None
        raise DataError(f"data.path={folder}: cannot be written ({error})") from None


@contextmanager
def _remove_new_parents(folder: Path) -> Iterator[None]:
    """If the block raises, parents that had to be made are removed again, as far as they are empty."""
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        yield
    except Exception:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextmanager
def stage_new(folder: Path) -> Iterator[Path]:
    """As `stage`, for a folder that must not be there yet."""
    with _disk_errors(folder):
        if folder.exists() or folder.is_symlink():
            raise DataError(f"{folder}: is there already, and nothing is overwritten; name another folder")
    with stage(folder) as staged:
        yield staged


def recover(folder: Path) -> None:
    """Undo or finish a replacement that was interrupted between its two renames."""
    replaced = output_paths.replaced(folder)
    with _disk_errors(folder):
        if replaced.exists():
            with _locked(output_paths.staged(folder)):
                _recover(folder, replaced)


def _recover(folder: Path, replaced: Path) -> None:
    if replaced.exists() and folder.exists():
        shutil.rmtree(replaced)
    elif replaced.exists():
        replaced.replace(folder)


@contextmanager
def _locked(staged: Path) -> Iterator[None]:
    """Make the folder and hold the file beside it, which a kill may leave there, but not held.

    A lock on the folder itself would keep out no other host: over NFS only that of a file does, opened for writing.
    """
    staged.parent.mkdir(parents=True, exist_ok=True)
    path = output_paths.lock(staged)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{staged}: another `pretrain prepare` is writing it; wait for its end") from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise DataError(f"{staged}: another `pretrain prepare` has just finished; run this one again")
        try:
            staged.mkdir(exist_ok=True)
            yield
        finally:
            path.unlink(missing_ok=True)

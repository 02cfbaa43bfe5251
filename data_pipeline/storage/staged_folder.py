"""A folder that appears complete or not at all: it is built under a temporary name and then renamed."""

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
    """Yields a temporary folder to fill. When the block ends without an error, it replaces `folder`.

    What an interrupted attempt left is removed first. If the block raises, the temporary folder is removed and `folder`
    is unchanged. Only one process may stage a folder at a time.
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
    """Yields the store of finished tasks for `folder`, including those of an interrupted attempt.

    The store is removed when the block succeeds. If the block raises, it is kept when the work was interrupted or took
    more than SECONDS_WORTH_KEEPING: a mistake in the settings must not cost hours, and a quick failure should leave
    nothing behind.
    """
    work = TaskStore(output_paths.task_store(folder))
    with _disk_errors(folder), _remove_new_parents(work.path), _locked(work.path):
        try:
            yield work
        except BaseException as error:
            interrupted = isinstance(error, WorkInterrupted) or not isinstance(error, Exception)
            if work.age() > (0 if interrupted else SECONDS_WORTH_KEEPING):
                logger.info("%s: keeps the results of finished tasks. The next run continues from them", work.path)
            else:
                work.remove()
            raise
        work.remove()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError while writing into a DataError that names `data.path`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise NoSpace(
                f"data.path={folder}: no space left on the disk; nothing unfinished was kept",
                "free some space",
                "choose a data.path on another disk",
            ) from None
        raise DataError(f"data.path={folder}: cannot be written ({error})") from None


@contextmanager
def _remove_new_parents(folder: Path) -> Iterator[None]:
    """If the block raises, remove the parent folders that were created for it, if they are empty."""
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
    """Like `stage`, for a folder that must not exist yet."""
    with _disk_errors(folder):
        if folder.exists() or folder.is_symlink():
            raise DataError(f"{folder}: exists already, and nothing is overwritten", "name another folder")
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
    """Create the folder and lock the file beside it. A killed process may leave that file, but not the lock.

    The lock is on a file opened for writing, because over NFS a lock on the folder would not exclude other hosts.
    """
    staged.parent.mkdir(parents=True, exist_ok=True)
    path = output_paths.lock(staged)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{staged}: another `pretrain prepare` is writing it", "wait until it ends") from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise DataError(f"{staged}: another `pretrain prepare` has just finished", "run this one again")
        try:
            staged.mkdir(exist_ok=True)
            yield
        finally:
            path.unlink(missing_ok=True)

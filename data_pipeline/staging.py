"""A folder that appears whole or not at all: it is built beside its place and renamed into it."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.durable import sync_folder
from data_pipeline.errors import DataError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def stage(folder: Path, keep: Set[str] = frozenset()) -> Iterator[Path]:
    """Gives a folder beside `folder` to fill; when the block ends well it takes the place of `folder`.

    What an interrupted attempt left is removed first, except the files named in `keep`. If the block raises, nothing is
    left and `folder` is as before. Only one process may stage a folder at a time.
    """
    staged, replaced = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".replaced")
    made_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        with _locked(staged):
            _recover(folder, replaced)
            for entry in staged.iterdir():
                if entry.name not in keep:
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
                for parent in made_parents:
                    with contextlib.suppress(OSError):
                        parent.rmdir()
                raise
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DataError(
                f"data.path={folder}: no space left on the disk, nothing was kept; free some, or choose a data.path on "
                "another disk"
            ) from None
        raise DataError(f"data.path={folder}: cannot be written ({error})") from None


@contextmanager
def stage_new(folder: Path) -> Iterator[Path]:
    """As `stage`, for a folder that must not be there yet."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: is there already, and nothing is overwritten; name another folder")
    with stage(folder) as staged:
        yield staged


def recover(folder: Path) -> None:
    """Undo or finish a replacement that was interrupted between its two renames."""
    staged, replaced = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".replaced")
    if replaced.exists():
        with _locked(staged):
            _recover(folder, replaced)


def _recover(folder: Path, replaced: Path) -> None:
    if replaced.exists() and folder.exists():
        shutil.rmtree(replaced)
    elif replaced.exists():
        replaced.replace(folder)


@contextmanager
def _locked(staged: Path) -> Iterator[None]:
    """Hold the folder itself as the lock: it goes with the process and leaves no file behind."""
    staged.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(staged, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{staged}: another `pretrain prepare` is writing it; wait for its end") from None
        if not staged.exists() or not os.path.samestat(os.fstat(descriptor), staged.stat()):
            raise DataError(f"{staged}: another `pretrain prepare` has just finished; run this one again")
        yield
    finally:
        os.close(descriptor)

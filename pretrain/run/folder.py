"""The folder of a run: its id, its log files, and the room on its disk."""

import contextlib
import logging
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.errors import RunRefused

RUN_ID_FILE = "run_id"


log = logging.getLogger(__name__)


def run_id(folder: Path) -> str:
    """A unique id of the run, made with its folder; call this while the folder is held."""
    path = folder / RUN_ID_FILE
    if not path.exists():
        write_durably(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="utf-8").strip()


def forget_run_id(folder: Path) -> None:
    """Delete the id; the run then gets a new one."""
    (folder / RUN_ID_FILE).unlink(missing_ok=True)


def check_space(folder: Path, needed: int) -> None:
    """Raise RunRefused if the disk has no room for one checkpoint of `needed` bytes."""
    standing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(standing).free
    if free < needed:
        raise RunRefused(
            f"run.dir={str(folder)!r}: no space left: one checkpoint takes {needed / 2**30:.2f} GiB, "
            f"{free / 2**30:.2f} GiB are free",
            "make room or choose a run.dir on another disk",
        )


class _LogFile(logging.FileHandler):
    """A log file that loses lines, and not the run, if the disk is full or gone."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_to_file(folder: Path, rank: int) -> Iterator[None]:
    """Write the log of every rank into the run folder; only rank 0 also logs to the console."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(logs / f"rank-{rank:05d}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s [rank {rank}] %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

"""The folder of a run: held by one live process at a time, made by one configuration."""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from data_pipeline.errors import SYSTEM_FAULTS
from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.changes import DATA, Change, changes_between, refusal
from pretrain.config.errors import RunError, RunInUse, RunRefused
from pretrain.config.load import read_run_config, to_yaml
from pretrain.config.records import flatten
from pretrain.config.run import RunConfig

CONFIG_FILE = "config.yaml"
LOCK_FILE = "run.lock"
RUN_ID_FILE = "run_id"

CHANGES_FILE = "changes.jsonl"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """Make the folder and keep other processes out of it; raises RunError naming the process that holds it.

    Gives what raises RunError once another folder has that name, or none: somebody moved or deleted the one that is
    held, and another run may hold the one that is there. A lock that somebody deleted is taken again.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = os.open(folder, os.O_RDONLY)  # while it is open, no other folder is given its number
        except OSError as error:
            raise _not_writable(folder, error) from None
        stack.callback(os.close, held)
        locks = [stack.enter_context(_take_lock(folder))]  # goes with its file, also when the process is killed

        def refuse_another() -> None:
            if not _is_at(held, folder):
                raise RunError(
                    f"run.dir={str(folder)!r}: is not the folder that this run began in: that was moved or deleted; "
                    "put it back, or stop this run"
                )
            if not _is_at(locks[-1].fileno(), folder / LOCK_FILE):
                locks.append(stack.enter_context(_take_lock(folder)))

        yield refuse_another


def _take_lock(folder: Path) -> TextIO:
    try:
        lock = (folder / LOCK_FILE).open("a+")
        is_free = _lock(lock)
    except OSError as error:
        raise _not_writable(folder, error) from None
    if not is_free:
        with lock:
            lock.seek(0)
            raise RunInUse(
                f"run.dir={str(folder)!r}: in use by another live process ({_holder(lock.read())}); wait for it, stop "
                "it, or choose another run.name or run.dir"
            )
    lock.truncate(0)
    lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    lock.flush()
    return lock


def _not_writable(folder: Path, error: OSError) -> RunError:
    kind = RunRefused if error.errno in SYSTEM_FAULTS else RunError
    return kind(f"run.dir={str(folder)!r}: cannot be written: {error.strerror}; choose another run.dir")


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether what is open is still what has that name."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def holder(folder: Path) -> str | None:
    """The live process that holds the folder, in words; None: nobody."""
    try:
        with (folder / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return _holder((folder / LOCK_FILE).read_text(encoding="utf-8"))
    except OSError:
        return None


def check_same_config(folder: Path, config: RunConfig) -> None:
    """Raise RunError listing the keys that differ from the configuration of the folder and may not, unless accepted."""
    refused = refusal(_changes(folder, config), config.run.accept_changes)
    if refused:
        raise RunError(f"run.dir={str(folder)!r} was made by another configuration:{refused}")


def check_not_edited(folder: Path, trained_with: RunConfig) -> None:
    """Raise RunError if the configuration in the folder of a run has other settings than the run was trained with.

    `trained_with`: as a checkpoint of the run has it. Changes that a resume accepted are recorded, and pass.
    """
    expected = _flat(trained_with) | {key: now for key, (_, now) in _accepted(folder).items()}
    changes = changes_between(expected, _flat(read_run_config(folder / CONFIG_FILE)))
    edited = [change for change in changes if change.kind != "safe"]
    if edited:
        lines = "".join(f"\n  {change}" for change in edited)
        raise RunError(
            f"{folder / CONFIG_FILE} has other settings than the run was trained with:{lines}\n"
            "restore them: `pretrain train` refuses to resume with these too"
        )


def _accepted(folder: Path) -> dict[str, list[Any]]:
    """The last change of each key in changes.jsonl: its values before and after."""
    path, last = folder / CHANGES_FILE, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            last.update(json.loads(line)["changes"])
    return {key: values for key, values in last.items() if key not in DATA}


def _flat(config: RunConfig) -> dict[str, Any]:
    return flatten(yaml.safe_load(to_yaml(config)))


def run_id(folder: Path) -> str:
    """A name for the run that no other has, made with its folder; called where the folder is held."""
    path = folder / RUN_ID_FILE
    if not path.exists():
        write_durably(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="utf-8").strip()


def forget_run_id(folder: Path) -> None:
    """The run gets another name when it is asked for one."""
    (folder / RUN_ID_FILE).unlink(missing_ok=True)


def record_config(folder: Path, config: RunConfig, step: int, other_data: Sequence[Change] = ()) -> None:
    """Store the resolved configuration, which `generate` and a resume read; what has changed since the last start is
    told, and kept in changes.jsonl, a line a resume."""
    changes = [*_changes(folder, config), *other_data]
    for change in changes:
        log.info("changed after step %d: %s", step, change)
    if changes:
        values = {change.key: [change.before, change.now] for change in changes}
        line = {"step": step, "time": round(time.time(), 3), "changes": values}
        path = folder / CHANGES_FILE
        before = path.read_bytes() if path.exists() else b""
        write_durably(path, before + json.dumps(line, ensure_ascii=False).encode() + b"\n")
    write_durably(folder / CONFIG_FILE, to_yaml(config).encode())


def check_space(folder: Path, needed: int) -> None:
    """Raise RunRefused if the disk has no room for one checkpoint of `needed` bytes."""
    standing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(standing).free
    if free < needed:
        raise RunRefused(
            f"run.dir={str(folder)!r}: no space left: one checkpoint takes {needed / 2**30:.2f} GiB, "
            f"{free / 2**30:.2f} GiB are free; make room or choose a run.dir on another disk"
        )


class _LogFile(logging.FileHandler):
    """Loses lines where the disk is full or gone, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_to_file(folder: Path, rank: int) -> Iterator[None]:
    """All ranks write their log into the run folder; rank 0 alone also speaks to the console."""
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


def _changes(folder: Path, config: RunConfig) -> list[Change]:
    """From the configuration that the folder was last used with; none in a new folder."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return []
    try:
        saved = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
        raise RunError(f"{path}: not readable as a configuration; restore it or choose another run.dir") from None
    return changes_between(saved, _flat(config))


def _lock(lock: TextIO) -> bool:
    """Whether the lock was to be had; tried twice: someone may only have been looking (`holder`)."""
    for seconds in (0.2, 0.0):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(seconds)
    return False


def _holder(text: str) -> str:
    try:
        values: dict[str, Any] = json.loads(text)
        return f"process {values['pid']} on {values['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"

"""A folder of task results. A result under a key is complete, and was computed from exactly what the key hashes."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.storage.atomic_write import partial_of, write_durably

RECORD, PROGRESS = ".json", ".progress"


def key_of(*parts: Any) -> str:
    """The key of a task: equal for arguments with equal JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class TaskStore:
    """Files `KEY.SUFFIX` of each task, and its record `KEY.json`, which is written last."""

    path: Path

    def file(self, key: str, suffix: str) -> Path:
        return self.path / f"{key}{suffix}"

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a finished task, or None if it is not finished."""
        try:
            record = json.loads(self.file(key, RECORD).read_text())
            files = record.pop("files")
            if all(self.file(key, suffix).stat().st_size == size for suffix, size in files.items()):
                return dict(record)
        except (OSError, ValueError, KeyError):
            pass
        return None

    def finish(self, key: str, record: dict[str, Any], suffixes: tuple[str, ...]) -> None:
        """Mark the task as finished. All of its files must be on disk."""
        files = {suffix: self.file(key, suffix).stat().st_size for suffix in suffixes}
        write_durably(self.file(key, RECORD), json.dumps({**record, "files": files}).encode())
        self.file(key, PROGRESS).unlink(missing_ok=True)

    @contextmanager
    def writing(self, key: str, suffix: str) -> Iterator[BinaryIO]:
        """Yields a file that gets its name when it is complete. Writing the record makes the name durable too."""
        path = self.file(key, suffix)
        partial = partial_of(path)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def save_progress(self, key: str, num_bytes: int) -> None:
        """Save how many bytes of the task are done. This is a file, so that other hosts can read it."""
        with contextlib.suppress(OSError):
            self.file(key, PROGRESS).write_text(str(num_bytes))

    def progress(self, key: str) -> int:
        try:
            return int(self.file(key, PROGRESS).read_text() or 0)
        except (OSError, ValueError):
            return 0

    def age(self) -> float:
        """Seconds since the first task was finished, or 0 if none is."""
        finished = [path.stat().st_mtime for path in self.path.glob(f"*{RECORD}")]
        return max(time.time() - min(finished), 1e-9) if finished else 0.0

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def at_most_every(seconds: float, clock: Callable[[], float]) -> Callable[[], bool]:
    """A function that returns true at most once per `seconds`."""
    last = clock()

    def due() -> bool:
        nonlocal last
        if clock() - last < seconds:
            return False
        last = clock()
        return True

    return due

"""Copies of checkpoints at a URL: any file system that fsspec knows."""

import contextlib
import hashlib
import io
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, TypeVar

from data_pipeline.config import CacheConfig
from data_pipeline.errors import BadFile, DataError, Stopped, error_line
from data_pipeline.remote.errors import PermanentError, TransientError
from data_pipeline.remote.fsspec_store import RemotePath
from data_pipeline.remote.transfer import Attempts, blocks, read_small
from data_pipeline.storage.atomic_write import sync_folder, write_durably
from data_pipeline.storage.urls import PIPE, redact_url
from pretrain.checkpoint.manifest import MANIFEST, parse_manifest, read_manifest, set_aside
from pretrain.checkpoint.on_disk import complete_ones, has_its_files, read_checkpoint
from pretrain.checkpoint.retention import Retention
from pretrain.config.errors import ConfigError, Problem, RunError

RANK_TIMEOUT = 1800.0
"""Seconds that rank 0 waits for the next rank to finish."""
REMEDY = "repair it or the connection, raise data.cache.timeout_seconds, or unset checkpoint.mirror"
PROBE = "probe"
RESTART = "restart-"
"""Prefix of a folder at the mirror, before a number: for saves of a run after it restarted at step 0."""

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class Mirror:
    """Sends complete checkpoints in a thread: each rank sends a share of the files, then rank 0 the manifest."""

    def __init__(
        self,
        url: str,
        keep_last: int,
        cache: CacheConfig,
        rank: int,
        num_ranks: int,
        *,
        still_seconds: float = 900.0,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """`cache` has the retries and timeouts. Raises ConfigError if the URL cannot be used on this machine.

        At its end, a run waits for the mirror until nothing moved for `still_seconds`; `moved` is called on progress.
        """
        self._base, self._retention = url.rstrip("/"), Retention(keep_last)
        self.restarts = 0
        """How often the run restarted at step 0 although the mirror had checkpoints; the same on all ranks."""
        self._cache, self._rank, self._num_ranks = cache, rank, num_ranks
        self._still_seconds, self._moved, self._moves = still_seconds, moved, 0
        try:
            if url.startswith(PIPE):
                raise PermanentError("a command cannot be written to")
            RemotePath(self._base, cache.timeout_seconds).close()
        except PermanentError as error:
            remedy = "give a URL such as s3://bucket/folder, and install what fsspec needs for it"
            raise ConfigError([Problem("checkpoint.mirror", redact_url(url), str(error), remedy)]) from None
        except TransientError:  # the next call tries again
            pass
        self._waiting: queue.Queue[Path | None] = queue.Queue()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The folder of the checkpoints since the last restart."""
        return f"{self._base}/{RESTART}{self.restarts}" if self.restarts else self._base

    def send(self, folder: Path) -> None:
        """Queue a complete checkpoint for copying. A copy that fails is logged and skipped."""
        self._waiting.put(folder)

    def close(self) -> None:
        """Wait until all are sent. If nothing moved for too long, log it and start no further copy."""
        self._waiting.put(None)
        seen, since = self._moves, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.5)
            if self._moves != seen:
                seen, since = self._moves, time.monotonic()
                self._moved()
            elif time.monotonic() - since > self._still_seconds:
                log.warning("%s: given up, as nothing moved; what was not copied is in the run folder", self)
                self._given_up.set()
                return

    def __str__(self) -> str:
        return f"checkpoint.mirror={redact_url(self.url)}"

    def begin(self, checkpoints: Path) -> list[RunError]:
        """Check that the mirror can be written to, and fetch its newest checkpoint if the folder has none as new.

        One rank calls this before the run. Damaged checkpoints in the mirror are skipped; returns their faults. Raises
        RunError if the mirror cannot be reached, OSError if the local disk cannot hold a copy.
        """
        with _as_run_error():
            self._write(PROBE, io.BytesIO(b"probe"), 5)
            self._ask(PROBE, "removed", RemotePath.remove)
            matches = (re.fullmatch(rf"{RESTART}(\d+)", name) for name in self._ask("", "listed", RemotePath.list))
            self.restarts = max((int(match[1]) for match in matches if match), default=0)
        here = max((path.name for path in complete_ones(checkpoints) if has_its_files(path)), default="")
        return self.fetch_newer(checkpoints, here)[1]

    def restart(self) -> None:
        """Leave the checkpoints there unchanged; later ones go into a new folder beside them. One rank calls this."""
        with _as_run_error():
            if self._names():
                self.restarts, self._retention = self.restarts + 1, Retention(self._retention.keep_last)
                text = b"Checkpoints since run.restart=true; those from before are in the folder above.\n"
                self._write("about.txt", io.BytesIO(text), len(text))  # object stores have no empty folders

    def fetch_newer(self, checkpoints: Path, than: str) -> tuple[bool, list[RunError]]:
        """Fetch the newest whole checkpoint above the name `than`; returns whether there was one, and the faults of
        those that were skipped. A local checkpoint of that name is damaged, and is set aside."""
        with _as_run_error():
            return self._fetch_newer(checkpoints, than)

    def _fetch_newer(self, checkpoints: Path, than: str) -> tuple[bool, list[RunError]]:
        passed_over: list[RunError] = []
        for name in reversed(self._complete(self._names())):
            if name <= than:
                break
            log.info("fetching %s/%s: newer than all whole ones in %s", redact_url(self.url), name, checkpoints)
            partial, final = checkpoints / f"{name}.partial", checkpoints / name
            try:
                self._fetch(name, partial)
                if os.path.lexists(final):
                    aside = set_aside(final)
                    log.warning("%s is damaged: it is %s now, and its copy takes its place", final, aside.name)
                partial.rename(final)
                sync_folder(checkpoints)
                self._retention.mark(name, whole=True)
                return True, passed_over
            except RunError as error:
                self._retention.mark(name, whole=False)
                passed_over.append(error)
                log.warning("%s; trying the one before", error.one_line)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return False, passed_over

    def _fetch(self, name: str, folder: Path) -> None:
        """Raises RunError if the copy is damaged, DataError if it cannot be fetched."""
        folder.mkdir(parents=True, exist_ok=True)
        content = read_small(f"{self.url}/{name}/{MANIFEST}", self._cache)
        write_durably(folder / MANIFEST, content)
        for file, num_bytes in self._files_of(name, content, folder).items():
            with (folder / file).open("wb") as target:
                for block in blocks(f"{self.url}/{name}/{file}", self._cache, size=num_bytes):
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
        read_checkpoint(folder)

    def _files_of(self, name: str, content: bytes, folder: Path) -> dict[str, int]:
        """The bytes of each file in a manifest; raises RunError unless the mirror has the files with these sizes."""
        files = {file: int(record["bytes"]) for file, record in parse_manifest(content, folder)["files"].items()}
        sizes = self._ask(name, "listed", RemotePath.list)
        for file, num_bytes in files.items():
            if sizes.get(file) != num_bytes:
                found = f"{sizes[file]} bytes instead of {num_bytes}" if file in sizes else "none"
                raise RunError(f"{redact_url(self.url)}/{name}/{file} is damaged: there are {found}")
        return files

    def _looks_whole(self, name: str) -> bool:
        """Whether manifest and file sizes agree; the result is remembered."""
        whole = False
        if MANIFEST in self._ask(name, "listed", RemotePath.list):
            with contextlib.suppress(RunError):
                self._files_of(name, read_small(f"{self.url}/{name}/{MANIFEST}", self._cache), Path(name))
                whole = True
        self._retention.mark(name, whole=whole)
        return whole

    def _names(self) -> list[str]:
        """The names of all checkpoints at the mirror, whole or not, oldest first."""
        return sorted(name for name in self._ask("", "listed", RemotePath.list) if re.fullmatch(r"step-\d+", name))

    def _complete(self, names: list[str]) -> list[str]:
        return [name for name in names if MANIFEST in self._ask(name, "listed", RemotePath.list)]

    def _work(self) -> None:
        with contextlib.suppress(Stopped):
            self._send_all()

    def _send_all(self) -> None:
        while (folder := self._waiting.get()) is not None:
            try:
                self._send(folder)
            except (OSError, RunError, DataError) as error:
                log.warning(
                    "%s: not copied to %s: %s; training continues", folder, redact_url(self.url), error_line(error)
                )
                continue
            try:
                if self._rank == 0:
                    self._prune(folder.name)
            except DataError as error:
                log.warning("%s: older checkpoints are not removed: %s; training continues", self, error.one_line)

    def _send(self, folder: Path) -> None:
        content = (folder / MANIFEST).read_bytes()
        files = read_manifest(folder)["files"]
        # The mirror may have files of an earlier try: each rank marks what it has sent.
        mark = f"sent-{hashlib.sha256(content).hexdigest()[:16]}"
        if self._rank == 0:
            self._ask(f"{folder.name}/{MANIFEST}", "removed", RemotePath.remove)
        for name in sorted(files)[self._rank :: self._num_ranks]:
            with (folder / name).open("rb") as source:
                self._write(f"{folder.name}/{name}", source, files[name]["bytes"])
        self._write(f"{folder.name}/{mark}-{self._rank}", io.BytesIO(b"sent"), 4)
        if self._rank != 0:
            return
        self._wait_for({f"{mark}-{rank}" for rank in range(self._num_ranks)}, folder.name)
        self._write(f"{folder.name}/{MANIFEST}", io.BytesIO(content), len(content))
        log.info("copied %s to %s", folder, redact_url(self.url))

    def _prune(self, newest: str) -> None:
        """Keep the last `keep_last` whole checkpoints up to this one, and later ones: a run that went back reaches them
        again."""
        self._retention.mark(newest, whole=True)
        for name in self._retention.outdated(self._names(), newest, self._looks_whole):
            self._ask(f"{name}/{MANIFEST}", "removed", RemotePath.remove)  # first: the rest is then incomplete
            self._ask(name, "removed", RemotePath.remove)

    def _write(self, name: str, source: BinaryIO, num_bytes: int) -> None:
        def write(place: RemotePath) -> None:
            source.seek(0)
            place.write(_Watched(source, self._move), num_bytes)

        self._ask(name, "written", write)

    def _wait_for(self, names: set[str], folder: str) -> None:
        """Wait until the mirror has all of these files."""
        missing = names
        deadline = time.monotonic() + RANK_TIMEOUT
        while True:
            still_missing = names - self._ask(folder, "listed", RemotePath.list, moves=False).keys()
            if not still_missing:
                return
            if still_missing != missing:
                missing, deadline = still_missing, time.monotonic() + RANK_TIMEOUT
                self._move()
            if time.monotonic() > deadline:
                rank = min(int(name.rpartition("-")[2]) for name in missing)
                raise RunError(f"rank {rank} did not send its files in {RANK_TIMEOUT / 60:.0f} minutes")
            if self._given_up.wait(1.0):
                raise Stopped

    def _ask(self, name: str, done: str, question: Callable[[RemotePath], Answer], *, moves: bool = True) -> Answer:
        """Call `question` with the path of this name; retried if it fails, raises BadFile in the end."""
        url = f"{self.url}/{name}".rstrip("/")
        attempts = Attempts(url, self._cache, self._given_up)
        while True:
            try:
                with closing(RemotePath(url, self._cache.timeout_seconds)) as place:
                    answer = question(place)
            except PermanentError as error:
                raise BadFile(f"{redact_url(url)}: cannot be {done}: {error}", REMEDY) from None
            except TransientError as error:
                attempts.failed(f"cannot be {done}: {error}", REMEDY)
            else:
                if moves:
                    self._move()
                return answer

    def _move(self) -> None:
        if self._given_up.is_set():
            raise Stopped
        self._moves += 1


@contextlib.contextmanager
def _as_run_error() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise RunError(f"checkpoint.mirror: {error.message}", *error.hints) from None


class _Watched:
    """A file that reports each read of a block: the block before is sent by then."""

    def __init__(self, source: BinaryIO, moved: Callable[[], None]) -> None:
        self._source, self._moved = source, moved

    def read(self, size: int, /) -> bytes:
        self._moved()
        return self._source.read(size)

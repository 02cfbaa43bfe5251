"""Copies of checkpoints at a URL: any file system that fsspec knows."""

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from data_pipeline.config import CacheConfig
from data_pipeline.errors import BadFile, DataError
from data_pipeline.remote.addresses import shown
from data_pipeline.remote.answers import Interrupted, Refused
from data_pipeline.remote.transfer import Attempts, blocks, read_small
from data_pipeline.remote.vendors import Place
from pretrain.checkpoint.manifest import MANIFEST, read_manifest, remove_folder
from pretrain.checkpoint.store import complete_ones, read_checkpoint
from pretrain.config.errors import ConfigError, Problem, RunError

PATIENCE = 900.0
"""Seconds that rank 0 waits for the next whole file of the others."""
REMEDY = "mend it or the way to it, give it more time (data.cache.timeout_seconds), or take checkpoint.mirror out"

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class Mirror:
    """Sends complete checkpoints in a thread: every rank its own files, rank 0 the manifest when all are there."""

    def __init__(self, url: str, keep_last: int, cache: CacheConfig, rank: int, num_ranks: int) -> None:
        """`cache` says how often and how long a server is asked; ConfigError where the URL names nothing here."""
        self.url, self.keep_last = url.rstrip("/"), keep_last
        self._cache, self._rank, self._num_ranks = cache, rank, num_ranks
        try:
            Place(self.url, cache.timeout_seconds).close()
        except (Interrupted, Refused) as error:
            remedy = "give a URL such as s3://bucket/folder, and install what fsspec needs for it"
            raise ConfigError([Problem("checkpoint.mirror", shown(url), str(error), remedy)]) from None
        self._waiting: queue.Queue[Path | None] = queue.Queue()
        self._thread = threading.Thread(target=self._send_all, name="mirror", daemon=True)
        self._thread.start()

    def send(self, folder: Path) -> None:
        """Copy a complete checkpoint when its turn comes; what fails is told and left to the next one."""
        self._waiting.put(folder)

    def close(self) -> None:
        """Until all are sent."""
        self._waiting.put(None)
        self._thread.join()

    def fetch_newer(self, checkpoints: Path) -> None:
        """On one rank: bring the mirror's newest checkpoint into a folder that has none as new.

        Raises RunError where the mirror cannot be listed.
        """
        here = max((path.name for path in complete_ones(checkpoints)), default="")
        try:
            there = self._complete()
        except DataError as error:
            raise RunError(f"checkpoint.mirror: {error}") from None
        for name in reversed(there):
            if name <= here:
                return
            log.info("fetching %s/%s: newer than all in %s", shown(self.url), name, checkpoints)
            partial = checkpoints / f"{name}.partial"
            try:
                self._fetch(name, partial)
            except (OSError, RunError, DataError) as error:
                log.warning("%s; trying the one before", error)
                if partial.exists():
                    remove_folder(partial)
                continue
            partial.rename(checkpoints / name)
            return

    def _fetch(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_bytes(read_small(f"{self.url}/{name}/{MANIFEST}", self._cache))
        for file, record in read_manifest(folder)["files"].items():
            with (folder / file).open("wb") as target:
                for block in blocks(f"{self.url}/{name}/{file}", self._cache, size=record["bytes"]):
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
        read_checkpoint(folder)

    def _complete(self) -> list[str]:
        """Names of the checkpoints there, the oldest first."""
        names = sorted(name for name in self._ask("", "listed", Place.list) if re.fullmatch(r"step-\d+", name))
        return [name for name in names if MANIFEST in self._ask(name, "listed", Place.list)]

    def _send_all(self) -> None:
        while (folder := self._waiting.get()) is not None:
            try:
                self._send(folder)
            except (OSError, RunError, DataError) as error:
                log.warning("%s: not copied to %s: %s; training goes on", folder, shown(self.url), error)

    def _send(self, folder: Path) -> None:
        files = read_manifest(folder)["files"]
        for name in sorted(files)[self._rank :: self._num_ranks]:
            self._put(folder, name)
        if self._rank != 0:
            return
        self._wait_for({name: record["bytes"] for name, record in files.items()}, folder.name)
        self._put(folder, MANIFEST)
        log.info("copied %s to %s", folder, shown(self.url))
        for name in self._complete()[: -self.keep_last]:
            self._ask(f"{name}/{MANIFEST}", "removed", Place.remove)  # first: what has none is no checkpoint
            self._ask(name, "removed", Place.remove)

    def _put(self, folder: Path, name: str) -> None:
        def write(place: Place) -> None:
            with (folder / name).open("rb") as source:
                place.write(source)

        self._ask(f"{folder.name}/{name}", "written", write)

    def _wait_for(self, sizes: dict[str, int], folder: str) -> None:
        """Until all ranks' files are there."""
        missing = set(sizes)
        deadline = time.monotonic() + PATIENCE
        while True:
            found = self._ask(folder, "listed", Place.list)
            still_missing = {name for name, size in sizes.items() if found.get(name) != size}
            if not still_missing:
                return
            if still_missing != missing:
                missing, deadline = still_missing, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                raise RunError(f"{min(missing)}, which another rank sends, did not come in {PATIENCE / 60:.0f} minutes")
            time.sleep(1.0)

    def _ask(self, name: str, done: str, question: Callable[[Place], Answer]) -> Answer:
        """The answer about what has this name there; asked again where none came, BadFile in the end."""
        url = f"{self.url}/{name}".rstrip("/")
        attempts = Attempts(url, self._cache, threading.Event())
        while True:
            try:
                with closing(Place(url, self._cache.timeout_seconds)) as place:
                    return question(place)
            except Refused as error:
                raise BadFile(f"{shown(url)}: cannot be {done}: {error}; {REMEDY}") from None
            except Interrupted as error:
                attempts.failed(f"cannot be {done}: {error}", REMEDY)

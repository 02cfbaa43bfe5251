"""Copies of checkpoints at a URL: any file system that fsspec knows."""

import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pretrain.checkpoint.manifest import MANIFEST, read_manifest, remove_folder
from pretrain.checkpoint.store import complete_ones, read_checkpoint
from pretrain.config.errors import ConfigError, Problem, RunError

ATTEMPTS, FIRST_PAUSE, PATIENCE = 4, 2.0, 3600.0
"""Tries of each file, seconds before the second one, seconds that rank 0 waits for the files of the others."""

log = logging.getLogger(__name__)


def open_url(url: str) -> tuple[Any, str]:
    """The file system and the folder in it; raises ConfigError where there is no such file system here."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url.rstrip("/"))
    except (ValueError, ImportError) as error:
        remedy = "give a URL such as s3://bucket/folder, and install what fsspec needs for it"
        raise ConfigError([Problem("checkpoint.mirror", url, str(error), remedy)]) from None


class Mirror:
    """Sends complete checkpoints in a thread: every rank its own files, rank 0 the manifest when all are there."""

    def __init__(self, url: str, keep_last: int) -> None:
        self.files, self.root = open_url(url)
        self.url, self.keep_last = url, keep_last
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
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
        """On one rank: bring the mirror's newest checkpoint into a folder that has none as new."""
        here = max((path.name for path in complete_ones(checkpoints)), default="")
        for name in reversed(self._complete()):
            if name <= here:
                return
            final = checkpoints / name
            partial = final.with_name(name + ".partial")
            log.info("fetching %s/%s: newer than all in %s", self.url, name, checkpoints)
            try:
                partial.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self.root}/{name}/{MANIFEST}", str(partial / MANIFEST))
                for file in read_manifest(partial)["files"]:
                    self.files.get_file(f"{self.root}/{name}/{file}", str(partial / Path(file).name))
                read_checkpoint(partial)
            except (OSError, RunError) as error:
                log.warning("%s/%s: %s; trying the one before", self.url, name, error)
                remove_folder(partial)
                continue
            partial.rename(final)
            return

    def _complete(self) -> list[str]:
        """Names of the checkpoints there, the oldest first."""
        try:
            found = self.files.glob(f"{self.root}/step-*/{MANIFEST}")
        except OSError as error:
            raise RunError(f"checkpoint.mirror={self.url}: cannot be listed: {error}; mend it or take it out") from None
        return sorted(Path(str(path)).parent.name for path in found)

    def _send_all(self) -> None:
        while (folder := self._waiting.get()) is not None:
            try:
                self._send(folder)
            except (OSError, RunError) as error:
                log.warning("%s: not copied to %s: %s; training goes on", folder, self.url, error)

    def _send(self, folder: Path) -> None:
        names = sorted(read_manifest(folder)["files"])
        there = f"{self.root}/{folder.name}"
        self.files.makedirs(there, exist_ok=True)
        for name in names[self.rank :: self.size]:
            self._put(folder / name, f"{there}/{name}")
        if self.rank == 0:
            self._wait_for({name: (folder / name).stat().st_size for name in names}, there)
            self._put(folder / MANIFEST, f"{there}/{MANIFEST}")
            log.info("copied %s to %s", folder, self.url)
            for name in self._complete()[: -self.keep_last]:
                # The manifest first: what has none is no checkpoint.
                self.files.rm_file(f"{self.root}/{name}/{MANIFEST}")
                self.files.rm(f"{self.root}/{name}", recursive=True)

    def _put(self, path: Path, there: str) -> None:
        for attempt in range(ATTEMPTS):
            try:
                self.files.put_file(str(path), there)
            except OSError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(FIRST_PAUSE * 2**attempt)
            else:
                return

    def _wait_for(self, sizes: dict[str, int], there: str) -> None:
        """Until all ranks' files are there."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.files.invalidate_cache()
            found = {Path(str(item["name"])).name: item["size"] for item in self.files.ls(there, detail=True)}
            if all(found.get(name) == size for name, size in sizes.items()):
                return
            if time.monotonic() > deadline:
                raise RunError(f"not all files of other ranks came within {PATIENCE / 60:.0f} minutes")
            time.sleep(1.0)

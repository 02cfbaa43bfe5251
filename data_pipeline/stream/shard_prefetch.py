"""Fetches the remote shards of a run in the order of their first use, while training runs on those that are there."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from data_pipeline.errors import DataError, Stopped, error_line
from data_pipeline.progress import show_progress
from data_pipeline.remote.folder import RemoteFolder
from data_pipeline.shards.manifest import FileRecord
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.mixture import TrainingData

logger = logging.getLogger(__name__)
NUM_FETCHERS = 4
WINDOW = 1 << 14
SECONDS_BETWEEN_LINES = 10.0
ShardToFetch = tuple[RemoteFolder, FileRecord]


def check_cache_holds(datasets: Sequence[PackedDataset]) -> None:
    """Raise DataError unless everything a run reads fits in the cache at once. All datasets share one cache."""
    remote = [(dataset.folder.cache, dataset) for dataset in datasets if isinstance(dataset.folder, RemoteFolder)]
    if remote:
        remote[0][0].check_holds(record for _, dataset in remote for record in dataset.record.files)


def fetch_all(folder: RemoteFolder) -> str:
    """Fetch a whole dataset into the cache, for example before a run. Returns a summary for display."""
    records = [record for split in folder.manifest().splits.values() for record in split.files]
    folder.cache.check_holds(records)
    num_bytes = sum(record.bytes for record in records)

    def fetch(record: FileRecord) -> int:
        folder.drop_damaged(record)
        os.close(folder.open(record))
        return record.bytes

    pool = ThreadPoolExecutor(NUM_FETCHERS)
    try:
        with show_progress("fetching", num_bytes) as update:
            for done in itertools.accumulate(pool.map(fetch, records)):
                update(done)
    finally:
        pool.shutdown(cancel_futures=True)
    return f"{folder}: {len(records)} files, {num_bytes / 1e6:.1f} MB, in {folder.cache.folder}"


@contextmanager
def prefetch_shards(dataset: TrainingData, seed: int, position: int, stop: threading.Event) -> Iterator[None]:
    """Runs threads that fetch shards within the block, until all are there. `stop` must be set before the block
    ends."""
    shards = [shard for part in dataset.parts if isinstance(part.folder, RemoteFolder) for shard in part.record.shards]
    if not shards:
        yield
        return
    fetching = _Fetching(shards_by_first_use(dataset, seed, position), shards, stop)
    threads = [threading.Thread(target=fetching.work, name="fetch", daemon=True) for _ in range(NUM_FETCHERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def shards_by_first_use(dataset: TrainingData, seed: int, position: int) -> Iterator[ShardToFetch]:
    """The remote shards, ordered by the first position from `position` on that needs them.

    Looks ahead as many positions as there are samples. Shards of a mixture that are needed only later come last.
    """
    seen = set()
    end = position + dataset.num_samples
    if dataset.end_position is not None:
        end = min(end, dataset.end_position)
    for start in range(position, end, WINDOW):
        numbers = dataset.sample_indices(np.arange(start, min(start + WINDOW, end), dtype=np.int64), seed)
        for _, folder, record in sorted(dataset.shards_of(numbers), key=lambda need: need[0]):
            if isinstance(folder, RemoteFolder) and record.sha256 not in seen:
                seen.add(record.sha256)
                yield folder, record
    for part in dataset.parts:
        if isinstance(part.folder, RemoteFolder):
            yield from ((part.folder, record) for record in part.record.shards if record.sha256 not in seen)


class _Fetching:
    """State shared by the threads."""

    def __init__(self, needs: Iterator[ShardToFetch], shards: Sequence[FileRecord], stop: threading.Event) -> None:
        self._needs, self._stop = needs, stop
        self._left_to_others: list[ShardToFetch] = []
        self._num_shards, self._num_bytes = len(shards), sum(shard.bytes for shard in shards)
        self._lock = threading.Lock()
        self._shards_done = self._bytes_done = 0
        self._began = self._said = time.monotonic()

    def work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                need = next(self._needs, None)
                wait = need is None
                if wait and self._left_to_others:
                    need = self._left_to_others.pop()
            if need is None:
                return
            folder, record = need
            try:
                if wait:  # the file may be complete by now, or its fetching process may have ended
                    os.close(folder.open(record, self._stop))
                elif not folder.cache.fetch(record, folder.address(record.file), self._stop):
                    self._left_to_others.append(need)
                    continue
            except Stopped:
                return
            except DataError as error:
                # The reader will ask for this file again, and an error counts only then.
                logger.warning("prefetching shards: %s", error_line(error))
            else:
                self._count(folder, record)

    def _count(self, folder: RemoteFolder, record: FileRecord) -> None:
        with self._lock:
            self._shards_done, self._bytes_done = self._shards_done + 1, self._bytes_done + record.bytes
            now, all_done = time.monotonic(), self._shards_done == self._num_shards
            if now - self._said < SECONDS_BETWEEN_LINES and not all_done:
                return
            self._said = now
            logger.info(
                "%s: %d of %d shards, %.1f of %.1f MB, in %.0f s",
                folder.cache.folder,
                self._shards_done,
                self._num_shards,
                self._bytes_done / 1e6,
                self._num_bytes / 1e6,
                now - self._began,
            )

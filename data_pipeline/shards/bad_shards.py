"""The bad shards of a split: which they are, what is wrong with each, and an error when none is left."""

import logging
from collections.abc import Sequence

from data_pipeline.errors import BadFile, DataError
from data_pipeline.shards.folder import DatasetFolder
from data_pipeline.shards.index import RESTORE
from data_pipeline.shards.manifest import ShardRecord

logger = logging.getLogger(__name__)


class BadShards:
    """Bad shards by number. They are logged here, and raise a DataError when all shards of the split are bad."""

    def __init__(self, folder: DatasetFolder, split: str, shards: Sequence[ShardRecord]) -> None:
        self._folder, self._split, self._shards = folder, split, shards
        self._faults: dict[int, str] = {}
        self._logged: set[int] = set()

    def find_missing(self) -> None:
        """Add the shards that are missing or have the wrong length."""
        for shard, record in enumerate(self._shards):
            fault = self._folder.fault(record)
            if fault is not None:
                self._faults[shard] = fault
        if self._faults:
            self._raise_if_all_are_bad()
            logger.warning("%s: %s", self._folder, self._summary())

    def add(self, shard: int, fault: BadFile) -> None:
        """Treat a shard as bad from now on. It is logged once, when its first sample is needed."""
        self._faults[shard] = fault.message
        if shard not in self._logged:
            self._logged.add(shard)
            count = self._shards[shard].samples
            logger.error("%s; its %d samples are skipped and counted (data.on_bad_shard=skip)", fault.message, count)
        self._raise_if_all_are_bad()

    def raise_if_bad(self, shard: int) -> None:
        """Raise BadFile if this shard is bad."""
        if shard in self._faults:
            raise BadFile(self._faults[shard], *RESTORE)

    def _raise_if_all_are_bad(self) -> None:
        if len(self._faults) == len(self._shards):
            raise DataError(f"{self._folder}: {self._summary()}", "restore the shards: nothing is left to train on")

    def _summary(self) -> str:
        first = next(iter(self._faults.values()))
        counts = f"{len(self._faults)} of {len(self._shards)} shards for {self._split}"
        return f"{counts} cannot be used; the first: {first}"

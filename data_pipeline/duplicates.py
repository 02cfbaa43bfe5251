"""Which documents of the whole corpus are left out as copies of an earlier one."""

import dataclasses
import logging
import tempfile

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig
from data_pipeline.dedup.clusters import exact_duplicates, near_duplicates
from data_pipeline.dedup.minhash import Signatures
from data_pipeline.pieces.cleaned import documents, signatures_of
from data_pipeline.pieces.work import WorkFolder

EXACT, NEAR = "dedup/exact", "dedup/near"
SHOWN_CLUSTERS = 10
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What is left of a corpus, and what was alike. Documents are numbered through all pieces, in order."""

    kept: list[npt.NDArray[np.bool_]]
    """For each document of each piece."""
    dropped: dict[str, int]
    """Documents left out, by reason."""
    cluster_sizes: dict[int, int]
    """Clusters of more than one document: how many there are of each size."""
    largest: list[tuple[int, int, int]]
    """Of the largest clusters: the document kept, the last one that was left out, and the size."""


def find_duplicates(work: WorkFolder, keys: list[str], data: DataConfig) -> Duplicates:
    """Of documents that are equal, or alike where `data.dedup` is near, all but the first are left out."""
    tables = [documents(work, key) for key in keys]
    lengths = [len(table) for table in tables]
    if data.dedup == "none" or not sum(lengths):
        return Duplicates([np.ones(length, dtype=np.bool_) for length in lengths], {}, {}, [])
    numbers = np.arange(sum(lengths))
    exact = exact_duplicates(np.concatenate([table["content"] for table in tables]))
    first = exact
    if data.dedup == "near":
        logger.info("looking for near-duplicates among %s documents", f"{len(numbers):,}")
        first = near_duplicates(_all_signatures(work, keys, data.near_dedup.permutations), data.near_dedup)
    is_exact, is_alike = exact != numbers, first != numbers
    dropped = {EXACT: int(is_exact.sum()), NEAR: int((is_alike & ~is_exact).sum())}
    sizes = np.bincount(first, minlength=len(numbers))
    counts, how_many = np.unique(sizes[sizes > 1], return_counts=True)
    largest = [number for number in np.argsort(-sizes, kind="stable")[:SHOWN_CLUSTERS].tolist() if sizes[number] > 1]
    last = np.zeros(len(numbers), dtype=np.int64)
    np.maximum.at(last, first, numbers)
    kept = ~(is_exact | is_alike)
    return Duplicates(
        kept=np.split(kept, np.cumsum(lengths)[:-1]),
        dropped={reason: count for reason, count in dropped.items() if count},
        cluster_sizes=dict(zip(counts.tolist(), how_many.tolist(), strict=True)),
        largest=[(number, int(last[number]), int(sizes[number])) for number in largest],
    )


def _all_signatures(work: WorkFolder, keys: list[str], permutations: int) -> Signatures:
    """A row for each document of all pieces, read from the disk when it is looked at.

    In one file, which goes with the process: a map of each piece would hold a file descriptor for each.
    """
    with tempfile.TemporaryFile(dir=work.path) as file:
        for key in keys:
            file.write(signatures_of(work, key, permutations).tobytes())
        file.flush()
        return np.memmap(file, dtype=np.uint32, mode="r").reshape(-1, permutations)

"""Which documents of the whole corpus are left out as copies of an earlier one."""

import dataclasses
import logging
import tempfile

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig
from data_pipeline.dedup.clusters import HASH_BYTES, Numbers, exact_duplicates, near_duplicates
from data_pipeline.dedup.minhash import Signatures
from data_pipeline.prepare.clean_task import documents, num_documents, signatures_of
from data_pipeline.progress import show_progress
from data_pipeline.storage.task_store import TaskStore

EXACT, NEAR = "dedup/exact", "dedup/near"
MAX_CLUSTERS = 10
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


def find_duplicates(work: TaskStore, keys: list[str], data: DataConfig) -> Duplicates:
    """Of documents that are equal, or alike where `data.dedup` is near, all but the first are left out."""
    lengths = [num_documents(work, key) for key in keys]
    if data.dedup == "none" or not sum(lengths):
        return Duplicates([np.ones(length, dtype=np.bool_) for length in lengths], {}, {}, [])
    contents = (documents(work, key)["content"] for key in keys)
    with show_progress("exact duplicates", 2 * sum(lengths) * HASH_BYTES) as update:
        exact = exact_duplicates(contents, sum(lengths), work.path, update)
    is_exact = _are_copies(exact)
    first, is_alike = exact, is_exact
    if data.dedup == "near":
        del exact, first
        signatures = _all_signatures(work, keys, data.near_dedup.permutations)
        logger.info("looking for near-duplicates among %s documents", f"{len(signatures):,}")
        with show_progress("near-duplicates", signatures.nbytes) as update:
            first = near_duplicates(signatures, data.near_dedup, update)
        is_alike = _are_copies(first)
    dropped = {EXACT: int(is_exact.sum()), NEAR: int((is_alike & ~is_exact).sum())}
    sizes, largest = _clusters(first)
    return Duplicates(
        kept=np.split(~(is_exact | is_alike), np.cumsum(lengths)[:-1]),
        dropped={reason: count for reason, count in dropped.items() if count},
        cluster_sizes=sizes,
        largest=largest,
    )


def _are_copies(first: Numbers) -> npt.NDArray[np.bool_]:
    return first != np.arange(len(first))


def _clusters(first: Numbers) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """As `Duplicates` tells of them; takes 8 bytes a document and 24 a cluster."""
    counts = np.bincount(first)
    originals = np.flatnonzero(counts > 1)
    sizes = counts[originals]
    del counts
    how_many = zip(*np.unique(sizes, return_counts=True), strict=True)
    shown = np.argsort(-sizes, kind="stable")[:MAX_CLUSTERS]
    largest = []
    for original, size in zip(originals[shown].tolist(), sizes[shown].tolist(), strict=True):
        last = int(np.flatnonzero(first == original)[-1])
        largest.append((original, last, size))
    return {int(size): int(count) for size, count in how_many}, largest


def _all_signatures(work: TaskStore, keys: list[str], permutations: int) -> Signatures:
    """A row for each document of all pieces, read from the disk when it is looked at.

    In one file, which goes with the process: a map of each piece would hold a file descriptor for each.
    """
    with tempfile.TemporaryFile(dir=work.path) as file:
        for key in keys:
            file.write(signatures_of(work, key, permutations).tobytes())
        file.flush()
        return np.memmap(file, dtype=np.uint32, mode="r").reshape(-1, permutations)

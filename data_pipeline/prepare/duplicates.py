"""Finds documents of the whole corpus that are copies of an earlier one."""

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
    """The documents kept and the clusters found. Documents are numbered through all tasks, in order."""

    kept: list[npt.NDArray[np.bool_]]
    """One array for each task: whether each of its documents is kept."""
    dropped: dict[str, int]
    """Dropped documents by reason."""
    cluster_sizes: dict[int, int]
    """Number of clusters with more than one document, by size."""
    largest: list[tuple[int, int, int]]
    """For the largest clusters: the document kept, the last one dropped, and the size."""


def find_duplicates(work: TaskStore, keys: list[str], data: DataConfig) -> Duplicates:
    """Drop all but the first of equal documents, or of similar documents if `data.dedup` is near."""
    lengths = [num_documents(work, key) for key in keys]
    if data.dedup == "none" or not sum(lengths):
        return Duplicates([np.ones(length, dtype=np.bool_) for length in lengths], {}, {}, [])
    contents = (documents(work, key)["content"] for key in keys)
    with show_progress("exact duplicates", 2 * sum(lengths) * HASH_BYTES) as update:
        exact = exact_duplicates(contents, sum(lengths), work.path, update)
    is_exact = _are_copies(exact)
    first, is_similar = exact, is_exact
    if data.dedup == "near":
        del exact, first
        signatures = _all_signatures(work, keys, data.near_dedup.permutations)
        logger.info("looking for near-duplicates among %s documents", f"{len(signatures):,}")
        with show_progress("near-duplicates", signatures.nbytes) as update:
            first = near_duplicates(signatures, data.near_dedup, update)
        is_similar = _are_copies(first)
    dropped = {EXACT: int(is_exact.sum()), NEAR: int((is_similar & ~is_exact).sum())}
    sizes, largest = _clusters(first)
    return Duplicates(
        kept=np.split(~(is_exact | is_similar), np.cumsum(lengths)[:-1]),
        dropped={reason: count for reason, count in dropped.items() if count},
        cluster_sizes=sizes,
        largest=largest,
    )


def _are_copies(first: Numbers) -> npt.NDArray[np.bool_]:
    return first != np.arange(len(first))


def _clusters(first: Numbers) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """The cluster fields of `Duplicates`. Takes 8 bytes per document and 24 per cluster."""
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
    """One row per document of all tasks, read from disk when accessed.

    The rows are in one temporary file: mapping each task's file would need a file descriptor for each.
    """
    with tempfile.TemporaryFile(dir=work.path) as file:
        for key in keys:
            file.write(signatures_of(work, key, permutations).tobytes())
        file.flush()
        return np.memmap(file, dtype=np.uint32, mode="r").reshape(-1, permutations)

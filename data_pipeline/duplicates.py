"""Which documents of the whole corpus are left out as copies of an earlier one."""

import dataclasses
import logging
import tempfile

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig
from data_pipeline.dedup.clusters import Numbers, exact_duplicates, near_duplicates
from data_pipeline.dedup.minhash import Signatures
from data_pipeline.pieces.cleaned import DOCUMENT, documents, num_documents, signatures_of
from data_pipeline.pieces.work import WorkFolder
from data_pipeline.progress import show_progress

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
    lengths = [num_documents(work, key) for key in keys]
    if data.dedup == "none" or not sum(lengths):
        return Duplicates([np.ones(length, dtype=np.bool_) for length in lengths], {}, {}, [])
    numbers = np.arange(sum(lengths))
    exact = exact_duplicates(_all_contents(work, keys, lengths))
    first = exact
    if data.dedup == "near":
        signatures = _all_signatures(work, keys, data.near_dedup.permutations)
        logger.info("looking for near-duplicates among %s documents", f"{len(numbers):,}")
        with show_progress("near-duplicates", signatures.nbytes) as update:
            first = near_duplicates(signatures, data.near_dedup, update)
    is_exact, is_alike = exact != numbers, first != numbers
    dropped = {EXACT: int(is_exact.sum()), NEAR: int((is_alike & ~is_exact).sum())}
    sizes, largest = _clusters(first, np.flatnonzero(is_alike))
    return Duplicates(
        kept=np.split(~(is_exact | is_alike), np.cumsum(lengths)[:-1]),
        dropped={reason: count for reason, count in dropped.items() if count},
        cluster_sizes=sizes,
        largest=largest,
    )


def _clusters(first: Numbers, copies: Numbers) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """As `Duplicates` tells of them; `copies` in ascending order."""
    copies = copies[np.argsort(first[copies], kind="stable")]
    originals, begins = np.unique(first[copies], return_index=True)
    sizes = np.diff(begins, append=len(copies)) + 1
    last = copies[begins + sizes - 2]
    how_many = zip(*np.unique(sizes, return_counts=True), strict=True)
    shown = np.argsort(-sizes, kind="stable")[:SHOWN_CLUSTERS]
    largest = np.stack([originals[shown], last[shown], sizes[shown]], axis=1)
    return {int(size): int(count) for size, count in how_many}, [tuple(row) for row in largest.tolist()]


def _all_contents(work: WorkFolder, keys: list[str], lengths: list[int]) -> npt.NDArray[np.void]:
    contents = np.empty(sum(lengths), dtype=DOCUMENT["content"])
    first = 0
    for key, length in zip(keys, lengths, strict=True):
        contents[first : first + length] = documents(work, key)["content"]
        first += length
    return contents


def _all_signatures(work: WorkFolder, keys: list[str], permutations: int) -> Signatures:
    """A row for each document of all pieces, read from the disk when it is looked at.

    In one file, which goes with the process: a map of each piece would hold a file descriptor for each.
    """
    with tempfile.TemporaryFile(dir=work.path) as file:
        for key in keys:
            file.write(signatures_of(work, key, permutations).tobytes())
        file.flush()
        return np.memmap(file, dtype=np.uint32, mode="r").reshape(-1, permutations)

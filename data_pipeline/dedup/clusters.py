"""Decides which documents are duplicates, from the signatures or content hashes of a whole corpus.

Two documents are similar if their signatures agree in all rows of some band and in a share of `config.similarity` of
all numbers. Documents are decided in order: one that is similar to an earlier kept one is its copy and is dropped, any
other is kept. A cluster is a kept document and its copies. So every dropped document is similar to the one kept in its
place. Connected components would not guarantee that: they follow chains (versions of a page, overlapping texts) to
documents that have nothing in common with the first.

Within a band's bucket, each document is compared with the first and with the MAX_DISTANCE before it. That is every pair
in a small bucket, and linear work when a phrase is on a hundred thousand pages. Little is lost: those pages share
little other text, so a truly similar pair meets in other, smaller buckets.

The result depends only on the order of documents in the whole corpus, not on how it was split into tasks.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.config import NearDedupConfig
from data_pipeline.dedup.minhash import EMPTY, Signatures
from data_pipeline.dedup.words import Hashes
from data_pipeline.errors import DataError

Numbers = npt.NDArray[np.int64]
Pairs = tuple[Numbers, Numbers]

MAX_DISTANCE = 16

NUM_PARTITIONS = 16
"""Hashes are compared one partition at a time, to save memory."""

HASH_BYTES = 16

BLOCK = 1 << 13
"""Signatures processed together: 4 MiB with 128 permutations."""

_MIX = np.uint64(0x9E3779B97F4A7C15)


def near_duplicates(
    signatures: Signatures, config: NearDedupConfig, update: Callable[[int], None] = lambda num_bytes: None
) -> Numbers:
    """The number of the document that is kept in place of each document (a row of `signatures`), or its own.

    `update` is called with the number of signature bytes searched so far. Takes 40 bytes per document besides the
    signatures (which may be a memory map), 140 if most of them share buckets, and 8 per similar pair among those left
    to `_decided_in_order`.
    """
    corpus = _Corpus(signatures, config)
    everyone = np.arange(corpus.size)
    lowest = _lowest_similar(corpus, everyone, update)
    kept = lowest == everyone
    waiting = ~kept[lowest]
    if waiting.any():
        pool = np.flatnonzero(kept | waiting)
        lowest[pool] = pool[_decided_in_order(corpus, pool, waiting[pool])]
    return lowest


def exact_duplicates(
    hashes: Iterable[npt.NDArray[np.void]],
    num_documents: int,
    folder: Path,
    update: Callable[[int], None] = lambda num_bytes: None,
) -> Numbers:
    """For each document, the lowest document number with the same 16-byte hash.

    The hashes come in one or several arrays.

    `update` is called with the number of hash bytes read so far, then with that plus the bytes compared.

    Memory: 9 bytes per document, and 60 per document of one partition at a time. Disk, in `folder`, for a while: 16
    per document.
    """
    firsts = np.empty(num_documents, np.int64)
    shares = np.empty(num_documents, np.uint8)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(NUM_PARTITIONS)]
        at = 0
        for some in hashes:
            halves = _halves(some.tobytes())
            of_these = (halves[:, 0] % np.uint64(NUM_PARTITIONS)).astype(np.uint8)
            shares[at : at + len(halves)] = of_these
            at += len(halves)
            for share, file in enumerate(files):
                file.write(halves[of_these == share].tobytes())
            update(at * HASH_BYTES)
        compared = 0
        for share, file in enumerate(files):
            file.seek(0)
            mine, numbers = _halves(file.read()), np.flatnonzero(shares == share)
            order = np.lexsort((mine[:, 1], mine[:, 0]))  # stable: equal hashes stay in order of document number
            numbers, mine = numbers[order], mine[order]
            is_first = np.ones(len(numbers), bool)
            is_first[1:] = (mine[1:] != mine[:-1]).any(axis=1)
            firsts[numbers] = numbers[is_first][np.cumsum(is_first) - 1]
            compared += len(numbers)
            update((num_documents + compared) * HASH_BYTES)
    return firsts


def _halves(hashes: bytes) -> Hashes:
    return np.frombuffer(hashes, np.uint64).reshape(-1, 2)


class _Corpus:
    """The signatures, and the comparisons that need them."""

    def __init__(self, signatures: Signatures, config: NearDedupConfig) -> None:
        if signatures.shape[1] != config.permutations:
            raise DataError(
                f"signatures have {signatures.shape[1]} numbers, but data.near_dedup needs bands * rows = "
                f"{config.permutations}",
                "compute the signatures again",
            )
        self._signatures = np.asarray(signatures)  # indexing a memory map directly is slower
        self._enough = config.similarity * config.permutations
        self._rows = config.rows
        self.bands = config.bands
        self.size = len(signatures)
        self.num_bytes = signatures.nbytes

    def similar(self, first: Numbers, second: Numbers) -> npt.NDArray[np.bool_]:
        """Whether the signatures of each pair agree in the required share of numbers."""
        answers = np.empty(len(first), bool)
        for at in range(0, len(first), BLOCK):
            chunk = slice(at, at + BLOCK)
            equal = self._signatures[first[chunk]] == self._signatures[second[chunk]]
            answers[chunk] = np.count_nonzero(equal, axis=1) >= self._enough
        return answers

    def candidates(self, band: int, numbers: Numbers) -> Iterator[Pairs]:
        """Pairs to compare, as indices in `numbers`, earlier one first. Each yielded array has a later document only
        once."""
        keys, places = self._buckets(band, numbers)
        if not len(keys):
            return
        opens = np.append(True, keys[1:] != keys[:-1])
        firsts = np.flatnonzero(opens)[np.cumsum(opens) - 1]
        yield places[firsts[~opens]], places[~opens]
        for distance in range(1, MAX_DISTANCE + 1):
            same = np.flatnonzero(firsts[distance:] <= np.arange(len(firsts) - distance))
            if not same.size:
                return
            yield places[same], places[same + distance]

    def _buckets(self, band: int, numbers: Numbers) -> tuple[Hashes, Numbers]:
        """The documents that share this band with others: keys in ascending order and, for equal keys, ascending
        indices in `numbers`. Key and index are sorted as one integer, with the key in the high bits."""
        place_bits = np.uint64(len(numbers).bit_length())
        packed = np.empty(len(numbers), np.uint64)
        filled = 0
        of_band = self._signatures[:, band * self._rows : (band + 1) * self._rows]
        for at in range(0, len(numbers), BLOCK):
            rows = of_band[numbers[at : at + BLOCK]]
            present = np.flatnonzero((rows != EMPTY).any(axis=1))
            keys = _keys(rows[present]) >> place_bits << place_bits
            packed[filled : filled + len(present)] = keys | (present + at).astype(np.uint64)
            filled += len(present)
        packed = packed[:filled]
        packed.sort()
        same = packed[1:] ^ packed[:-1] < np.uint64(1) << place_bits
        shared = np.zeros(filled, bool)
        shared[1:] |= same
        shared[:-1] |= same
        packed = packed[shared]
        return packed >> place_bits, _low(packed, place_bits)


def _keys(rows: Signatures) -> Hashes:
    keys = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        keys ^= column
        keys *= _MIX
        keys ^= keys >> np.uint64(32)
    return keys


def _lowest_similar(corpus: _Corpus, everyone: Numbers, update: Callable[[int], None]) -> Numbers:
    """The lowest number among each document and those similar to it, kept or not."""
    lowest = everyone.copy()
    for band in range(corpus.bands):
        for earlier, later in corpus.candidates(band, everyone):
            better = earlier < lowest[later]
            earlier, later = earlier[better], later[better]
            similar = corpus.similar(earlier, later)
            lowest[later[similar]] = earlier[similar]
        update(corpus.num_bytes * (band + 1) // corpus.bands)
    return lowest


def _decided_in_order(corpus: _Corpus, pool: Numbers, waiting: npt.NDArray[np.bool_]) -> Numbers:
    """For documents whose lowest similar one is itself a copy: the lowest kept similar one, as indices in `pool`.

    Whether a similar document is kept is known only after deciding all earlier ones, so all pairs are stored here.
    """
    place_bits = np.uint64(len(pool).bit_length())
    links = np.empty(0, np.uint64)
    for band in range(corpus.bands):
        found = [links]
        for earlier, later in corpus.candidates(band, pool):
            earlier, later = earlier[waiting[later]], later[waiting[later]]
            similar = corpus.similar(pool[earlier], pool[later])
            found.append(later[similar].astype(np.uint64) << place_bits | earlier[similar].astype(np.uint64))
        links = np.unique(np.concatenate(found))
    kept = np.ones(len(pool), bool)
    originals = np.arange(len(pool))
    for high, low in zip(links >> place_bits, _low(links, place_bits), strict=True):
        if kept[high] and kept[low]:
            kept[high] = False
            originals[high] = low
    return originals


def _low(packed: Hashes, bits: np.uint64) -> Numbers:
    return (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)

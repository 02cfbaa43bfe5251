"""Which documents are copies of which: one decision over the signatures or content hashes of a whole corpus.

Two documents are linked if they agree in all rows of a band, stand within NEIGHBOURS places of each other among all that
do (in the order of their numbers), and their signatures estimate a similarity of at least `config.similarity`. A cluster
is a connected component of these links: a chain of near-duplicates is one cluster, though its ends may differ more.

All documents that share a band are compared if they are NEIGHBOURS + 1 at most. Among more of them a pair may be passed
over, which keeps the work linear where a phrase stands on a hundred thousand pages. Little is lost: those other pages do
not have the rest of the pair's text, so in other bands the two meet among few.

Links depend on global numbers alone, so pieces may be cut anywhere.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.minhash import EMPTY, NearDedupConfig, Signatures
from data_pipeline.dedup.words import Hashes
from data_pipeline.errors import DataError

Numbers = npt.NDArray[np.int64]

NEIGHBOURS = 16

BLOCK = 1 << 13
"""Signatures looked at together, 4 MiB of them with 128 permutations."""

_MIX = np.uint64(0x9E3779B97F4A7C15)


def near_duplicates(parts: Sequence[Signatures], config: NearDedupConfig) -> Numbers:
    """For each document, counted through all parts, the lowest number in its cluster: its own if it is the first.

    Besides the signatures, which may be memory maps, this takes about 40 bytes a document.
    """
    corpus = _Corpus(parts, config)
    roots = np.arange(corpus.size)
    for band in range(config.bands):
        keys, numbers = corpus.buckets(band)
        for distance in range(1, NEIGHBOURS + 1):
            same = np.flatnonzero(keys[distance:] == keys[:-distance])
            if not same.size:
                break
            earlier, later = numbers[same], numbers[same + distance]
            apart = roots[earlier] != roots[later]  # what is in one cluster already need not be compared
            earlier, later = earlier[apart], later[apart]
            alike = corpus.alike(earlier, later)
            _join(roots, roots[earlier[alike]], roots[later[alike]])
    return roots


def exact_duplicates(hashes: npt.NDArray[np.void] | npt.NDArray[np.uint64]) -> Numbers:
    """For each document the lowest number among those with the same 16 bytes."""
    halves = np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: within equal hashes by number
    ranked = halves[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    firsts = np.empty_like(order)
    firsts[order] = order[is_first][np.cumsum(is_first) - 1]
    return firsts


class _Corpus:
    """Signatures in several arrays, numbered through."""

    def __init__(self, parts: Sequence[Signatures], config: NearDedupConfig) -> None:
        for number, part in enumerate(parts):
            if part.shape[1] != config.permutations:
                raise DataError(
                    f"signatures of piece {number} have {part.shape[1]} numbers, but data.near_dedup asks for "
                    f"bands * rows = {config.permutations}; compute them anew"
                )
        self._parts = parts
        self._config = config
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.size = int(self._starts[-1])

    def buckets(self, band: int) -> tuple[Hashes, Numbers]:
        """The documents that share this band with others: keys in ascending order, and numbers ascending among equal
        keys. Key and number are sorted as one integer: the high bits of the one, the low bits of the other."""
        number_bits = np.uint64(max(self.size, 2).bit_length())
        packed = np.empty(self.size, np.uint64)
        filled = 0
        columns = slice(band * self._config.rows, (band + 1) * self._config.rows)
        for start, part in zip(self._starts.tolist(), self._parts, strict=False):
            for first in range(0, len(part), BLOCK):
                block = part[first : first + BLOCK, columns]
                present = np.flatnonzero((block != EMPTY).any(axis=1))
                keys = _keys(block[present]) >> number_bits << number_bits
                packed[filled : filled + len(present)] = keys | (present + (start + first)).astype(np.uint64)
                filled += len(present)
        packed = packed[:filled]
        packed.sort()
        alone = (packed[1:] ^ packed[:-1]) >> number_bits != 0
        shared = packed[~(np.append(alone, True) & np.insert(alone, 0, True))]
        return shared >> number_bits, (shared & ((np.uint64(1) << number_bits) - np.uint64(1))).astype(np.int64)

    def alike(self, first: Numbers, second: Numbers) -> npt.NDArray[np.bool_]:
        """For each pair, whether its signatures estimate the similarity asked for."""
        enough = self._config.similarity * self._config.permutations
        answers = np.empty(len(first), bool)
        for at in range(0, len(first), BLOCK):
            chunk = slice(at, at + BLOCK)
            answers[chunk] = (self._rows(first[chunk]) == self._rows(second[chunk])).sum(axis=1) >= enough
        return answers

    def _rows(self, numbers: Numbers) -> Signatures:
        rows = np.empty((len(numbers), self._config.permutations), np.uint32)
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for owner in np.unique(owners).tolist():
            chosen = owners == owner
            rows[chosen] = self._parts[owner][numbers[chosen] - self._starts[owner]]
        return rows


def _keys(rows: Signatures) -> Hashes:
    keys = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        keys ^= column
        keys *= _MIX
        keys ^= keys >> np.uint64(32)
    return keys


def _join(roots: Numbers, first: Numbers, second: Numbers) -> None:
    """Link roots; `roots` names for each document the lowest number of its cluster, before and after."""
    while first.size:
        low, high = np.minimum(first, second), np.maximum(first, second)
        np.minimum.at(roots, high, low)
        while not np.array_equal(above := roots[roots], roots):
            roots[:] = above
        first, second = roots[first], roots[second]
        apart = first != second
        first, second = first[apart], second[apart]

"""MinHash signatures: the share of equal numbers in two of them estimates the Jaccard similarity of the documents,
that is of the sets of their shingles (runs of `shingle_words` words, see words.py).

Signatures are stored and compared with those of other machines and years: nothing here may change what they are.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.config import NearDedupConfig
from data_pipeline.dedup.words import fold, ngrams, split

Signatures = npt.NDArray[np.uint32]

EMPTY = 0xFFFFFFFF
"""Fills the signature of a document with nothing in it, which has no shingles and so no duplicates."""

GROUP_BYTES = 1 << 17
"""Text whose shingles are permuted together: enough to make numpy's calls cheap, little enough to stay in the cache."""


DEFAULT = NearDedupConfig(shingle_words=3, bands=32, rows=4, similarity=0.45, seed=0)
"""Finds all copies with 5 % of the words edited and 95 % of those with 10 % (tests/benchmarks/dedup.py)."""


def signatures(texts: Sequence[str], config: NearDedupConfig) -> Signatures:
    """One row of bands * rows numbers for each text; each row depends on its text and `config` alone."""
    factors, shifts = _permutations(config)
    rows = np.empty((len(texts), config.permutations), np.uint32)
    first = 0
    for group in _groups(texts):
        rows[first : first + len(group)] = _group_signatures(group, config.shingle_words, factors, shifts).T
        first += len(group)
    return rows


def _permutations(config: NearDedupConfig) -> tuple[Signatures, Signatures]:
    """x -> factor * x + shift modulo 2^32 with odd factors."""
    names = (f"permutation {config.seed} {number}".encode() for number in range(config.permutations))
    drawn = np.frombuffer(b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names), ">u4")
    factors, shifts = drawn.astype(np.uint32).reshape(-1, 2).T
    return factors | np.uint32(1), shifts


def _groups(texts: Sequence[str]) -> Iterator[list[bytes]]:
    """Folded texts, some at a time; one longer than GROUP_BYTES comes alone."""
    group: list[bytes] = []
    size = 0
    for text in texts:
        folded = fold(text)
        if group and size + len(folded) > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(folded)
        size += len(folded) + 1
    if group:
        yield group


def _group_signatures(group: list[bytes], shingle_words: int, factors: Signatures, shifts: Signatures) -> Signatures:
    """Signatures as columns."""
    words = split(b"\n".join(group))
    document_ends = np.cumsum([len(folded) + 1 for folded in group])
    word_ends = np.searchsorted(words.starts, document_ends)
    counts = np.diff(word_ends, prepend=0)
    columns = np.full((len(factors), len(group)), EMPTY, np.uint32)

    shingles = _upper(ngrams(words.hashes, shingle_words))
    in_one = np.ones(len(words.hashes), bool)  # no shingle spans two documents
    for back in range(1, shingle_words):
        in_one[word_ends[word_ends >= back] - back] = False
    shingles = shingles[in_one[: len(shingles)]]
    long = np.flatnonzero(counts >= shingle_words)
    if long.size:
        ends = np.cumsum(counts[long] - shingle_words + 1)
        starts = np.concatenate([[0], ends[:-1]])
        permuted = np.empty_like(shingles)
        for column, factor, shift in zip(columns, factors, shifts, strict=True):
            np.multiply(shingles, factor, out=permuted)
            np.add(permuted, shift, out=permuted)
            column[long] = np.minimum.reduceat(permuted, starts)

    for number in np.flatnonzero(counts < shingle_words):
        its_words = words.hashes[word_ends[number] - counts[number] : word_ends[number]]
        whole = its_words.astype("<u8").tobytes() or b" ".join(group[number].split())
        if whole:
            digest = hashlib.blake2b(whole, digest_size=4).digest()
            columns[:, number] = factors * np.uint32(int.from_bytes(digest, "big")) + shifts
    return columns


def _upper(hashes: npt.NDArray[np.uint64]) -> Signatures:
    return (hashes >> np.uint64(32)).astype(np.uint32)

"""MinHash signatures. The share of equal numbers in two signatures estimates the Jaccard similarity of the documents'
shingles (n-grams of `shingle_words` words, see words.py).

Signatures are stored and compared across machines and versions, so this code must never give other values.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.config import NearDedupConfig
from data_pipeline.dedup.words import fold, ngrams, split

Signatures = npt.NDArray[np.uint32]

EMPTY = 0xFFFFFFFF
"""Fills the signature of a document without words. It has no shingles, so it is not a duplicate of anything."""

GROUP_BYTES = 1 << 17
"""Text processed together: enough to amortize numpy's call overhead, and small enough for the processor's cache."""


DEFAULT = NearDedupConfig(shingle_words=3, bands=32, rows=4, similarity=0.45, seed=0)
"""Finds all copies with 5 % of the words changed and 95 % of those with 10 % (tests/benchmarks/dedup.py)."""


def signatures(texts: Sequence[str], config: NearDedupConfig) -> Signatures:
    """One row of bands * rows numbers for each text. Each row depends only on its text and on `config`."""
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
    """Folded texts in groups of about GROUP_BYTES. A longer text is a group of its own."""
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
    """One column per text."""
    words = split(b"\n".join(group))
    document_ends = np.cumsum([len(folded) + 1 for folded in group])
    word_ends = np.searchsorted(words.starts, document_ends)
    counts = np.diff(word_ends, prepend=0)
    columns = np.full((len(factors), len(group)), EMPTY, np.uint32)

    shingles = _upper(ngrams(words.hashes, shingle_words))
    in_one = np.ones(len(words.hashes), bool)  # shingles must not span two documents
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

"""A cache of encoded words for BPE: text repeats its words, so each distinct word is merged once.

If no piece contains two bytes side by side, no merge joins them, so text can be split between them without changing any
ID. The resulting words are short and few. All words of a text are looked up at once, with numpy, in a hash table that
compares their bytes.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.tokenizers.base import Ids

KEY_BYTES = 15
"""A key is two integers: the word's bytes, zero padding, and its length. Longer words are rare and are kept in a
dictionary."""
MAX_WORDS = 1 << 18
MAX_BYTES = 1 << 24
"""Total size of all words. When a limit is exceeded, the cache is cleared."""
CHUNK_BYTES = 1 << 18  # its arrays fit in the processor's cache
MAX_NUMBERS = MAX_WORDS + CHUNK_BYTES + 1
SLOTS_LOG2 = 20
FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
LENGTH_AT = np.uint64(56)
ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)
Numbers = npt.NDArray[np.int64]


class WordCache:
    """Gives the same IDs as `encode`, if that merges these pieces and spells everything else as bytes.

    Safe to use from several threads, which then wait for each other.
    """

    def __init__(self, pieces: Iterable[str], encode: Callable[[list[str]], Sequence[Sequence[int]]]) -> None:
        self._encode = encode
        self._joined = joined_pairs(pieces)
        self._lock = threading.Lock()
        self._clear()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The IDs of each text."""
        raw = [text.encode() for text in texts]
        ends = np.cumsum([0, *map(len, raw)])
        whole = b"".join([*raw, bytes(16)])  # keys are read 16 bytes at a time
        starts = self._starts(whole, ends)
        firsts = range(0, int(ends[-1]), CHUNK_BYTES)
        cuts = [*np.searchsorted(starts, firsts).tolist(), len(starts) - 1]
        with self._lock:
            try:
                found = [self._ids(whole, starts[first : last + 1]) for first, last in itertools.pairwise(cuts)]
            except BaseException:
                self._clear()  # words that failed to encode may already have numbers
                raise
        ids = np.concatenate([np.empty(0, dtype=np.int32), *(ids for ids, _ in found)])
        id_ends = np.cumsum(np.concatenate([[0], *(counts for _, counts in found)]))[np.searchsorted(starts, ends)]
        return [ids[start:end] for start, end in itertools.pairwise(id_ends.tolist())]

    def _clear(self) -> None:
        self._table = np.zeros(1 << SLOTS_LOG2, dtype=np.int32)  # word numbers; 0 marks a free slot
        self._low, self._high = np.zeros((2, MAX_NUMBERS), dtype=np.uint64)  # keys by number
        self._firsts, self._counts = np.zeros((2, MAX_NUMBERS), dtype=np.int64)  # a word's first ID, number of IDs
        self._ids_of_words = np.empty(1 << 20, dtype=np.int32)
        self._num_ids = self._num_bytes = 0
        self._num_words = 1
        self._long: dict[bytes, int] = {}

    def _starts(self, whole: bytes, ends: Numbers) -> Numbers:
        """The start of each word, and the end of the last one. Every text starts a word."""
        num_bytes = int(ends[-1])
        starts = np.empty(num_bytes + 1, dtype=np.bool_)
        pairs: Any = np.ndarray(num_bytes, dtype="<u2", buffer=whole, strides=(1,))
        for first in range(0, num_bytes, CHUNK_BYTES):
            part = slice(first, first + CHUNK_BYTES)
            np.logical_not(self._joined[pairs[part]], out=starts[1:][part])
        starts[ends] = True
        return np.flatnonzero(starts)

    def _ids(self, whole: bytes, starts: Numbers) -> tuple[Ids, Numbers]:
        """The IDs of the words between these offsets, and their number per word."""
        starts, lengths = starts[:-1], np.diff(starts)
        windows: Any = np.ndarray(len(whole) - 7, dtype="<u8", buffer=whole, strides=(1,))
        low = windows[starts] & FIRST_BYTES.take(lengths, mode="clip")
        high = np.minimum(lengths, KEY_BYTES + 1).astype(np.uint64) << LENGTH_AT
        longer = np.flatnonzero(lengths > 8)  # few
        high[longer] |= windows[starts[longer] + 8] & FIRST_BYTES[np.minimum(lengths[longer] - 8, 7)]
        numbers = self._find(low, high)
        missing = np.flatnonzero(numbers == 0)
        if len(missing):
            spans = zip(starts[missing].tolist(), (starts + lengths)[missing].tolist(), strict=True)
            words = [whole[start:end] for start, end in spans]
            numbers[missing] = self._learn(words, low[missing], high[missing])
        counts = self._counts[numbers]
        places = np.repeat(self._firsts[numbers] - np.cumsum(counts) + counts, counts)
        places += np.arange(len(places))
        ids = self._ids_of_words[places]
        if self._num_words > MAX_WORDS or self._num_bytes > MAX_BYTES:
            self._clear()
        return ids, counts

    def _find(self, low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64]) -> Numbers:
        """The number of each word; 0 if it is not in the table."""
        slots = _slots(low, high)
        numbers = self._table[slots].astype(np.int64)
        others = np.flatnonzero((self._low[numbers] != low) | (self._high[numbers] != high))
        others = others[numbers[others] != 0]
        while len(others):
            slots[others] = (slots[others] + 1) % len(self._table)
            numbers[others] = there = self._table[slots[others]]
            differ = (self._low[there] != low[others]) | (self._high[there] != high[others])
            others = others[differ & (there != 0)]
        return numbers

    def _learn(self, words: list[bytes], low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64]) -> Numbers:
        """Add words to the table. Returns their numbers."""
        new = [word for word in dict.fromkeys(words) if word not in self._long]
        self._long.update(zip(new, itertools.count(self._num_words)))
        numbers = np.fromiter(map(self._long.__getitem__, words), dtype=np.int64, count=len(words))
        if new:
            self._store(new)
        short = high >> LENGTH_AT <= KEY_BYTES
        self._low[numbers[short]], self._high[numbers[short]] = low[short], high[short]
        slots, waiting = _slots(low[short], high[short]), numbers[short]
        while len(waiting):
            free = self._table[slots] == 0
            self._table[slots[free]] = waiting[free]
            lost = self._table[slots] != waiting  # another word took the slot
            slots, waiting = (slots[lost] + 1) % len(self._table), waiting[lost]
        for word in new:
            if len(word) <= KEY_BYTES:
                del self._long[word]
        return numbers

    def _store(self, words: list[bytes]) -> None:
        """Encode words and give them the next numbers."""
        encoded = self._encode([word.decode() for word in words])
        counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(words))
        ends, own = self._num_ids + np.cumsum(counts), slice(self._num_words, self._num_words + len(words))
        self._firsts[own], self._counts[own] = ends - counts, counts
        before, self._num_ids = self._num_ids, self._num_ids + int(counts.sum())
        if self._num_ids > len(self._ids_of_words):
            self._ids_of_words = np.resize(self._ids_of_words, 2 * self._num_ids)
        self._ids_of_words[before : self._num_ids] = list(itertools.chain.from_iterable(encoded))
        self._num_words += len(words)
        self._num_bytes += sum(map(len, words))


def _slots(low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64]) -> Numbers:
    slots: Numbers = ((low * ODD[0] + high * ODD[1]) >> np.uint64(64 - SLOTS_LOG2)).astype(np.int64)
    return slots


def joined_pairs(pieces: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Whether two bytes may be adjacent in a piece, indexed by the two bytes as a little-endian number."""
    joined = np.zeros((256, 256), dtype=np.bool_)
    joined[0x80:, 0x80:] = True  # most of these are within one character
    pairs = {pair for piece in map(str.encode, pieces) for pair in zip(piece[1:], piece, strict=False)}
    for pair in pairs:
        joined[pair] = True
    return joined.reshape(-1)

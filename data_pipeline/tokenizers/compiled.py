"""Byte-pair merges and the memory of words, compiled by numba, an optional package (`pip install 'pretrain[fast]'`).

They do all that sentencepiece and `word_memory` do together, and are trusted only once they gave the same ids on a
sample: see `proven`.
"""

import heapq
import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_pipeline.tokenizers.base import Ids
from data_pipeline.tokenizers.word_memory import joined_pairs

logger = logging.getLogger(__name__)

WORD_BYTES = 64
"""Longer words are merged each time."""
SAMPLE_PIECES = 1 << 15
SAMPLE_CHARS = 1 << 16
UNICODE = 0x110000

Numbers = npt.NDArray[np.int64]
compiled = numba.njit(nogil=True, cache=True)
START, PRIME, ODD = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)
MARK, LENGTH, FIRST, NUM_IDS, FIRST_ID = range(5)  # columns of the table of words; mark 0: a free slot
HIGH_BITS, ONE = np.uint64(32), np.uint64(1)


class CompiledMerges:
    """Ids of texts by a BPE model that joins neighbours, the best score first, and spells the rest in bytes.

    `pieces`: of text, with their scores (higher: earlier); `byte_ids` [256]: of the pieces that are single bytes.
    All words are forgotten when half of `num_slots`, a power of two, are taken, or `max_bytes` of words or of their ids
    kept. Safe to use from several threads, which then wait for each other.
    """

    def __init__(
        self,
        pieces: Iterable[tuple[int, str, float]],
        byte_ids: Sequence[int],
        *,
        num_slots: int = 1 << 19,
        max_bytes: int = 1 << 22,
    ) -> None:
        given = [(index, piece, score) for index, piece, score in pieces if piece]
        id_of = {piece: index for index, piece, _ in given}
        self._byte_ids = np.array(byte_ids, dtype=np.int32)
        # Symbols: pieces by their ids, then characters of pieces that are none themselves.
        characters = sorted(set(itertools.chain.from_iterable(id_of)))
        self._num_ids = first = max(id_of.values(), default=0) + 1
        symbol_of = id_of | {new: first + n for n, new in enumerate(c for c in characters if c not in id_of)}
        self._symbols = np.full(UNICODE, -1, dtype=np.int32)
        for character in characters:
            self._symbols[ord(character)] = symbol_of[character]
        self._scores = np.zeros(len(symbol_of) + first, dtype=np.float64)
        for index, _, score in given:
            self._scores[index] = score
        joins = [
            (symbol_of[piece[:at]], symbol_of[piece[at:]], index)
            for index, piece, _ in given
            for at in range(1, len(piece))
            if piece[:at] in symbol_of and piece[at:] in symbol_of
        ]
        size = 1 << max(4, (2 * len(joins)).bit_length())
        self._pairs = np.full(size, -1, dtype=np.int64)
        self._joins = np.zeros(size, dtype=np.int32)
        _fill_pairs(np.array(joins, dtype=np.int64).reshape(-1, 3), self._pairs, self._joins)
        self._boundary = ~joined_pairs(id_of)
        self._lock = threading.Lock()
        self._table = np.zeros((num_slots, 8), dtype=np.int64)  # a line of the processor's cache for each word
        self._bytes = np.empty(max_bytes, dtype=np.uint8)
        self._ids = np.empty(max_bytes // 4, dtype=np.int32)
        self._used = np.zeros(3, dtype=np.int64)  # words, bytes, ids

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text."""
        raw = [text.encode() for text in texts]
        ends = np.cumsum([0, *map(len, raw)])
        whole = np.frombuffer(b"".join(raw), dtype=np.uint8)
        ids = np.empty(len(whole), dtype=np.int32)  # no text has more ids than bytes
        id_ends = np.zeros(len(ends), dtype=np.int64)
        model = (self._symbols, self._scores, self._pairs, self._joins, self._byte_ids, self._num_ids)
        with self._lock:
            memory = (self._table, self._bytes, self._ids, self._used)
            _encode(whole, ends, self._boundary, model, memory, ids, id_ends)
        return [ids[start:end] for start, end in itertools.pairwise(id_ends.tolist())]


def proven(
    encoder: CompiledMerges,
    pieces: Sequence[str],
    trusted: Callable[[list[str]], Sequence[Ids]],
    texts: Sequence[str],
) -> bool:
    """Whether it gives the ids of `trusted` on pieces, alone and in random company, and on the first of `texts`.

    Symbols that the model's owner defined, which are taken out of a text before anything is merged, show here.
    """
    generator = random.Random(0)
    known = generator.sample(pieces, min(len(pieces), SAMPLE_PIECES))
    company = ["".join(generator.choices(known, k=2)) for _ in known]
    mixed = [f"{other}{piece}{other[::-1]}" for piece, other in zip(known, company, strict=True)]
    ends = list(itertools.accumulate(map(len, texts)))
    firsts = texts[: 1 + int(np.searchsorted(ends, SAMPLE_CHARS))]
    sample = [*known, *mixed, *(text[:SAMPLE_CHARS] for text in firsts)]
    for text, ours, theirs in zip(sample, encoder.encode(sample), trusted(sample), strict=True):
        if not np.array_equal(ours, theirs):
            logger.warning("numba's merges are not used: they differ from sentencepiece's on %r", text[:80])
            return False
    return True


@compiled
def _encode(
    whole: Any, ends: Any, boundary: Any, model: Any, memory: Any, ids: Any, id_ends: Any
) -> None:  # pragma: no cover
    """Ids of texts that end at these bytes, and where each one's ids end."""
    table, kept, kept_ids, used = memory
    mask = len(table) - 1
    at = 0
    for text in range(len(ends) - 1):
        start, stop = ends[text], ends[text + 1]
        while start < stop:
            hashed, end = START, start
            while True:
                hashed = (hashed ^ np.uint64(whole[end])) * PRIME
                end += 1
                if end == stop or boundary[np.int64(whole[end - 1]) | np.int64(whole[end]) << 8]:
                    break
            length = end - start
            if length > WORD_BYTES:
                at = _merge(whole, start, end, model, ids, at)
                start = end
                continue
            hashed = hashed * ODD | ONE
            mark, slot = np.int64(hashed), np.int64(hashed >> HIGH_BITS) & mask
            while table[slot, MARK] != 0:
                if table[slot, MARK] == mark and table[slot, LENGTH] == length:
                    first, same = table[slot, FIRST], 0
                    while same < length and kept[first + same] == whole[start + same]:
                        same += 1
                    if same == length:
                        break
                slot = (slot + 1) & mask
            if table[slot, MARK] == 0:
                after = _merge(whole, start, end, model, ids, at)
                is_full = used[1] + WORD_BYTES > len(kept) or used[2] + WORD_BYTES > len(kept_ids)
                if is_full or 2 * used[0] >= len(table):
                    table[:] = 0
                    used[:] = 0
                    slot = np.int64(hashed >> HIGH_BITS) & mask
                table[slot, MARK], table[slot, LENGTH], table[slot, FIRST] = mark, length, used[1]
                table[slot, FIRST_ID], table[slot, NUM_IDS] = used[2], after - at
                kept[used[1] : used[1] + length] = whole[start:end]
                kept_ids[used[2] : used[2] + after - at] = ids[at:after]
                used[0], used[1], used[2] = used[0] + 1, used[1] + length, used[2] + after - at
                at = after
            else:
                first_id = table[slot, FIRST_ID]
                for offset in range(table[slot, NUM_IDS]):
                    ids[at + offset] = kept_ids[first_id + offset]
                at += table[slot, NUM_IDS]
            start = end
        id_ends[text + 1] = at


@compiled
def _merge(whole: Any, start: Any, end: Any, model: Any, ids: Any, at: Any) -> Any:  # pragma: no cover
    """Put the ids of a word at `at`: neighbours are merged, the best score first, of equal ones the leftmost."""
    symbols, scores, pairs, joins, byte_ids, num_ids = model
    symbol = np.empty(end - start, dtype=np.int32)
    first = np.empty(end - start + 1, dtype=np.int64)  # byte of each symbol
    count, place = 0, start
    while place < end:
        lead = np.int64(whole[place])
        size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        code = lead if size == 1 else lead & (0x7F >> size)
        for offset in range(1, size):
            code = code << 6 | np.int64(whole[place + offset]) & 0x3F
        symbol[count], first[count] = symbols[code], place
        count, place = count + 1, place + size
    first[count] = end
    if count == 1:
        return _spell(whole, start, end, symbol[0], byte_ids, num_ids, ids, at)
    before, after = np.arange(-1, count - 1), np.arange(1, count + 1)
    stop = first[1:].copy()  # where each symbol ends; merged ones grow to the right
    waiting = [(0.0, np.int64(0), np.int64(0), np.int64(0))]
    waiting.clear()
    for place in range(count - 1):
        joined = _join(symbol[place], symbol[place + 1], pairs, joins)
        if joined >= 0:
            heapq.heappush(waiting, (-scores[joined], np.int64(place), np.int64(place + 1), stop[place + 1]))
    while len(waiting):
        _, left, right, reaches = heapq.heappop(waiting)
        if symbol[left] == -2 or after[left] != right or stop[right] != reaches:
            continue  # one of the two was merged with another neighbour
        joined = _join(symbol[left], symbol[right], pairs, joins)
        symbol[left], symbol[right] = joined, -2
        stop[left] = stop[right]
        after[left] = after[right]
        if after[left] < count:
            before[after[left]] = left
        for one, other in ((before[left], left), (left, after[left])):
            if one >= 0 and other < count:
                joined = _join(symbol[one], symbol[other], pairs, joins)
                if joined >= 0:
                    heapq.heappush(waiting, (-scores[joined], np.int64(one), np.int64(other), np.int64(stop[other])))
    this: Any = 0
    while this < count:
        at = _spell(whole, first[this], stop[this], symbol[this], byte_ids, num_ids, ids, at)
        this = after[this]
    return at


@compiled
def _spell(
    whole: Any, start: Any, end: Any, symbol: Any, byte_ids: Any, num_ids: Any, ids: Any, at: Any
) -> Any:  # pragma: no cover
    """Put the id of a symbol at `at`, or those of its bytes where it is no piece; returns where they end."""
    if 0 <= symbol < num_ids:
        ids[at] = symbol
        return at + 1
    for place in range(start, end):
        ids[at] = byte_ids[whole[place]]
        at += 1
    return at


@compiled
def _join(left: Any, right: Any, pairs: Any, joins: Any) -> Any:  # pragma: no cover
    """The piece that two symbols are together; -1: none."""
    if left < 0 or right < 0:
        return np.int32(-1)
    slot = _slot_of(left, right, pairs)
    return joins[slot] if pairs[slot] >= 0 else np.int32(-1)


@compiled
def _slot_of(left: Any, right: Any, pairs: Any) -> Any:  # pragma: no cover
    """Where a pair is in the table, or would be."""
    key = np.int64(left) << 32 | np.int64(right)
    slot = np.int64((np.uint64(key) * ODD) >> HIGH_BITS) & (len(pairs) - 1)
    while pairs[slot] >= 0 and pairs[slot] != key:
        slot = (slot + 1) & (len(pairs) - 1)
    return slot


@compiled
def _fill_pairs(given: Any, pairs: Any, joins: Any) -> None:  # pragma: no cover
    for number in range(len(given)):
        left, right, joined = given[number]
        slot = _slot_of(left, right, pairs)
        pairs[slot], joins[slot] = left << 32 | right, joined

"""Byte-pair merges and a word cache, compiled by numba, an optional package (`pip install 'pretrain[fast]'`).

They replace sentencepiece with `word_cache`, and are used only after they gave the same IDs on a sample: see
`matches_reference`.
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
from data_pipeline.tokenizers.word_cache import joined_pairs

logger = logging.getLogger(__name__)

WORD_BYTES = 64
"""Longer words are not cached."""
SAMPLE_PIECES = 1 << 15
SAMPLE_CHARS = 1 << 16
UNICODE = 0x110000

Numbers = npt.NDArray[np.int64]
compiled = numba.njit(nogil=True, cache=True)
KEY_BYTES, FEW_IDS = 15, 8  # limits for words that one line of the table holds completely
LOW, HIGH = range(2)  # columns of the word table: the two halves of the key; HIGH is 0 in a free slot
NUM_IDS, FIRST, FIRST_ID, IDS = (
    4,
    5,
    6,
    8,
)  # columns of the table as int32; longer words and more IDs are stored in separate arrays
ODD, ALL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFFFFFFFFFFFFFFFF)
BEYOND = 16
"""Bytes that may be read, and IDs that may be written, past the last one."""
ONES = np.uint64(0x0101010101010101)
HIGH_BITS, LENGTH_AT, LENGTH_BITS = np.uint64(32), np.uint64(56), np.uint64(8)


class NumbaBpe:
    """Encodes text with a BPE model: merges the best-scored neighbours first, and spells the rest as bytes.

    `pieces` are (ID, piece, score); higher scores merge earlier. `byte_ids` [256] are the IDs of single bytes. The
    cache is cleared when half of `num_slots` (a power of two) are used, or when its words or IDs reach `max_bytes`.
    Safe to use from several threads, which then wait for each other.
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
        # Symbols: pieces by their IDs, then characters of pieces that are not pieces themselves.
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
        self._table = np.zeros((num_slots, 8), dtype=np.uint64)  # one cache line per word
        self._bytes = np.empty(max_bytes, dtype=np.uint8)
        self._ids = np.empty(max_bytes // 4, dtype=np.int32)
        self._used = np.zeros(3, dtype=np.int64)  # number of words, bytes and IDs

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The IDs of each text."""
        raw = [text.encode() for text in texts]
        ends = np.cumsum([len(one) for one in raw], dtype=np.int64)
        whole = b"".join([*raw, bytes(BEYOND)])
        is_last = np.ones(len(whole), dtype=np.uint8)
        ids = np.empty(len(whole), dtype=np.int32)  # a text never has more IDs than bytes
        id_ends = np.zeros(len(ends) + 1, dtype=np.int64)
        read = (_numbers(whole, 1), _numbers(whole, 2), _numbers(whole, 8), is_last, _numbers(is_last, 8))
        written = (ids, _numbers(ids, 8, step=4), id_ends)
        model = (self._symbols, self._scores, self._pairs, self._joins, self._byte_ids, self._num_ids)
        with self._lock:
            memory = (self._table, self._table.view(np.int32), self._bytes, self._ids, self._used)
            _encode(read, ends, self._boundary, model, memory, written)
        return [ids[start:end] for start, end in itertools.pairwise(id_ends.tolist())]


def _numbers(buffer: Any, size: int, step: int = 1) -> npt.NDArray[Any]:
    """The `size`-byte integers that begin at every byte, or at every `step`-th."""
    raw = memoryview(buffer).cast("B")
    return np.ndarray((len(raw) - size) // step + 1, dtype=f"<u{size}", buffer=raw, strides=(step,))


def matches_reference(
    encoder: NumbaBpe,
    pieces: Sequence[str],
    trusted: Callable[[list[str]], Sequence[list[int]]],
    texts: Sequence[str],
) -> bool:
    """Whether both encoders give equal IDs for single pieces, for random combinations, and for the first of `texts`.

    They differ if the model has user-defined symbols: `trusted` splits a text at these before any merge.
    """
    generator = random.Random(0)
    known = generator.sample(pieces, min(len(pieces), SAMPLE_PIECES))
    company = ["".join(generator.choices(known, k=2)) for _ in known]
    mixed = [f"{other}{piece}{other[::-1]}" for piece, other in zip(known, company, strict=True)]
    ends = list(itertools.accumulate(map(len, texts)))
    firsts = texts[: 1 + int(np.searchsorted(ends, SAMPLE_CHARS))]
    sample = [*known, *mixed, *(text[:SAMPLE_CHARS] for text in firsts)]
    found = [ids.tolist() for ids in encoder.encode(sample)]
    for text, ours, theirs in zip(sample, found, trusted(sample), strict=True):
        if ours != theirs:
            logger.warning("numba is installed but not used: its merges differ from sentencepiece's on %r", text[:80])
            return False
    return True


@compiled
def _encode(read: Any, ends: Any, boundary: Any, model: Any, memory: Any, written: Any) -> None:  # pragma: no cover
    """Encode the texts that end at these bytes, and store where each one's IDs end."""
    text_bytes, pairs, windows, is_last, last_windows = read
    ids, id_pairs, id_ends = written
    table, entries, kept, kept_ids, used = memory
    scratch = (
        np.empty(WORD_BYTES, dtype=np.int32),
        np.empty(WORD_BYTES + 1, dtype=np.int64),
        np.empty(WORD_BYTES, dtype=np.int32),
        np.empty(WORD_BYTES, dtype=np.float64),
    )
    for place in range(len(text_bytes) - BEYOND):
        is_last[place] = boundary[pairs[place]]
    mask, at, start = len(table) - 1, 0, 0
    for text in range(len(ends)):
        stop = ends[text]
        is_last[stop - 1] = 1
        while start < stop:
            end: Any = start
            # Scan eight bytes at once: a loop over single bytes is slowed by branch mispredictions.
            lasts = last_windows[end]
            while lasts == 0:
                end += 8
                lasts = last_windows[end]
            before = ~lasts & (lasts - np.uint64(1)) & ONES  # a one in each byte before the first that is not 0
            end += 1 + np.int64(before * ONES >> LENGTH_AT)
            length = end - start
            if length > WORD_BYTES:
                at = _merge(text_bytes, start, end, model, scratch, ids, at)
                start = end
                continue
            low, high = _key(windows, start, length)
            first_slot = np.int64((low * ODD + high) * ODD >> HIGH_BITS) & mask
            slot = first_slot
            while table[slot, HIGH] != 0:
                if table[slot, HIGH] == high and table[slot, LOW] == low:
                    if length <= KEY_BYTES:
                        break
                    same, first = 8, entries[slot, FIRST]
                    while same < length and kept[first + same] == text_bytes[start + same]:
                        same += 1
                    if same == length:
                        break
                slot = (slot + 1) & mask
            num_ids = entries[slot, NUM_IDS]
            if table[slot, HIGH] == 0:
                after = _merge(text_bytes, start, end, model, scratch, ids, at)
                num_ids = after - at
                is_full = used[1] + WORD_BYTES > len(kept) or used[2] + WORD_BYTES > len(kept_ids)
                if is_full or 2 * used[0] >= len(table):
                    table[:] = 0
                    used[:] = 0
                    slot = first_slot
                table[slot, LOW], table[slot, HIGH] = low, high
                entries[slot, NUM_IDS], entries[slot, FIRST], entries[slot, FIRST_ID] = num_ids, used[1], used[2]
                for offset in range(min(num_ids, FEW_IDS)):
                    entries[slot, IDS + offset] = ids[at + offset]
                if num_ids > FEW_IDS:
                    kept_ids[used[2] : used[2] + num_ids] = ids[at:after]
                    used[2] += num_ids
                if length > KEY_BYTES:
                    kept[used[1] : used[1] + length] = text_bytes[start:end]
                    used[1] += length
                used[0] += 1
            elif num_ids <= FEW_IDS:
                for pair in range(FEW_IDS // 2):  # always all pairs, to avoid a branch misprediction
                    id_pairs[at + 2 * pair] = table[slot, IDS // 2 + pair]
            else:
                first_id = entries[slot, FIRST_ID]
                for offset in range(num_ids):
                    ids[at + offset] = kept_ids[first_id + offset]
            at += num_ids
            start = end
        id_ends[text + 1] = at


@compiled
def _key(windows: Any, start: Any, length: Any) -> Any:  # pragma: no cover
    """The key of a word. For a short word: its bytes, zero padding and length. For a longer one, whose bytes must be
    compared too: the first eight bytes and a hash of the others."""
    low, high = windows[start], windows[start + 8]
    if length <= 8:
        low, high = low & (ALL >> np.uint64(64 - 8 * length)), np.uint64(0)
    elif length <= KEY_BYTES:
        high &= ALL >> np.uint64(128 - 8 * length)
    else:
        for place in range(start + 16, start + length - 8, 8):
            high = (high * ODD) ^ windows[place]
        high = (high * ODD) ^ windows[start + length - 8]
        high = (high * ODD) >> LENGTH_BITS
    return low, high | np.uint64(length) << LENGTH_AT


@compiled
def _merge(whole: Any, start: Any, end: Any, model: Any, scratch: Any, ids: Any, at: Any) -> Any:  # pragma: no cover
    """Write the IDs of a word at `at`. The best-scored neighbours merge first; of equal ones, the leftmost."""
    symbols, scores, pairs, joins, byte_ids, num_ids = model
    symbol, first, joined, score = scratch  # for short words: allocating these would take as long as merging
    if end - start > WORD_BYTES:
        symbol = np.empty(end - start, dtype=np.int32)
        first = np.empty(end - start + 1, dtype=np.int64)  # byte offset of each symbol
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
    if end - start > WORD_BYTES:
        count = _merge_many(symbol, first, count, scores, pairs, joins)
    else:
        count = _merge_few(symbol, first, count, scores, pairs, joins, joined, score)
    for this in range(count):
        at = _spell(whole, first[this], first[this + 1], symbol[this], byte_ids, num_ids, ids, at)
    return at


@compiled
def _merge_few(
    symbol: Any, first: Any, count: Any, scores: Any, pairs: Any, joins: Any, joined: Any, score: Any
) -> Any:  # pragma: no cover
    """Merge in place and return the number of symbols left. Looks at all symbols for each merge."""
    for place in range(count - 1):
        joined[place] = _join(symbol[place], symbol[place + 1], pairs, joins)
        score[place] = scores[joined[place]] if joined[place] >= 0 else -np.inf
    while count > 1:
        best = 0
        for place in range(1, count - 1):
            if score[place] > score[best]:
                best = place
        if score[best] == -np.inf:
            break
        symbol[best] = joined[best]
        count -= 1
        for place in range(best + 1, count):
            symbol[place], first[place] = symbol[place + 1], first[place + 1]
            joined[place - 1], score[place - 1] = joined[place], score[place]
        first[count] = first[count + 1]
        for place in range(max(best - 1, 0), min(best + 1, count - 1)):
            joined[place] = _join(symbol[place], symbol[place + 1], pairs, joins)
            score[place] = scores[joined[place]] if joined[place] >= 0 else -np.inf
    return count


@compiled
def _merge_many(symbol: Any, first: Any, count: Any, scores: Any, pairs: Any, joins: Any) -> Any:  # pragma: no cover
    """Like `_merge_few`, but efficient for any number of symbols."""
    before, after = np.arange(-1, count - 1), np.arange(1, count + 1)
    stop = first[1:].copy()  # end of each symbol; a merged symbol grows to the right
    waiting = [(0.0, np.int64(0), np.int64(0), np.int64(0))]
    waiting.clear()
    for place in range(count - 1):
        joined = _join(symbol[place], symbol[place + 1], pairs, joins)
        if joined >= 0:
            heapq.heappush(waiting, (-scores[joined], np.int64(place), np.int64(place + 1), stop[place + 1]))
    while len(waiting):
        _, left, right, reaches = heapq.heappop(waiting)
        if symbol[left] == -2 or after[left] != right or stop[right] != reaches:
            continue  # one of the two has merged with another neighbour
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
    num_left: Any = 0
    this: Any = 0
    while this < count:
        symbol[num_left], first[num_left] = symbol[this], first[this]
        num_left, this = num_left + 1, after[this]
    first[num_left] = first[count]
    return num_left


@compiled
def _spell(
    whole: Any, start: Any, end: Any, symbol: Any, byte_ids: Any, num_ids: Any, ids: Any, at: Any
) -> Any:  # pragma: no cover
    """Write a symbol's ID at `at`, or the IDs of its bytes if it is not a piece. Returns the end."""
    if 0 <= symbol < num_ids:
        ids[at] = symbol
        return at + 1
    for place in range(start, end):
        ids[at] = byte_ids[whole[place]]
        at += 1
    return at


@compiled
def _join(left: Any, right: Any, pairs: Any, joins: Any) -> Any:  # pragma: no cover
    """The piece that two symbols form, or -1."""
    if left < 0 or right < 0:
        return np.int32(-1)
    slot = _slot_of(left, right, pairs)
    return joins[slot] if pairs[slot] >= 0 else np.int32(-1)


@compiled
def _slot_of(left: Any, right: Any, pairs: Any) -> Any:  # pragma: no cover
    """The slot of a pair in the table, or the free slot where it belongs."""
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

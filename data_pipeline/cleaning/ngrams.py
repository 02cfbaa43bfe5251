"""Measures how much of a text is in its most frequent and its repeated n-grams of words.

The hashes of all n-grams of a length are sorted to find repeats. Bounds derived from them decide most texts.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from data_pipeline.cleaning.words import Hashes, Words

_PADDING = np.arange(16, dtype=np.uint64)
_ZERO = np.zeros(1, np.int64)


def frequent_size(words: Words, shares: Mapping[int, float], num_chars: int) -> int | None:
    """The first n whose most frequent n-gram covers a larger share of the characters, with one space between words.

    If several n-grams are equally frequent, the first in the text counts.
    """
    hashes, ordered = _by_size(words, shares, words.sequence_hashes)
    for row, (n, here) in enumerate(hashes.items()):
        longest = n * words.longest + n - 1
        least = max(1, int(shares[n] * num_chars / longest))  # a less frequent n-gram cannot cover so much
        again = ordered[row, least - 1 :] == ordered[row, : ordered.shape[1] - least + 1]
        if again.any() and _top_chars(words, here, ordered[row], n) / num_chars > shares[n]:
            return n
    return None


def repeated_size(words: Words, shares: Mapping[int, float], num_chars: int) -> int | None:
    """The first n whose repeated n-grams cover a larger share, taken from left to right without overlap.

    N-grams are compared as text without spaces; hashes only find candidates.
    """
    hashes, ordered = _by_size(words, shares, words.joined_hashes)
    again = ordered[:, 1:] == ordered[:, :-1]
    counts = np.count_nonzero(again, axis=1).tolist()
    for row, (n, here) in enumerate(hashes.items()):
        if counts[row] * n * words.longest / num_chars <= shares[n]:
            continue
        places = _places(here, ordered[row, 1:][again[row]])
        if _covered_chars(words, places, n) / num_chars <= shares[n]:
            continue
        if _repeated_chars(words, places, n) / num_chars > shares[n]:
            return n
    return None


def _by_size(
    words: Words, shares: Mapping[int, float], longer: Callable[[Hashes], Hashes]
) -> tuple[dict[int, Hashes], npt.NDArray[np.uint64]]:
    """Hashes of the n-grams for each n in `shares`, and an array with a sorted row for each n.

    `longer` makes hashes of n-grams from those of (n-1)-grams. Rows are padded with values that occur once.
    """
    hashes: dict[int, Hashes] = {}
    last = words.hashes
    for n in range(2, 1 + min(len(words), max(shares, default=0))):
        last = longer(last)
        if n in shares:
            hashes[n] = last
    ordered = np.empty((len(hashes), len(words)), np.uint64)
    for row, here in enumerate(hashes.values()):
        ordered[row, : len(here)] = here
        ordered[row, len(here) :] = _PADDING[: len(words) - len(here)]
    ordered.sort(axis=1)
    return hashes, ordered


def _top_chars(words: Words, hashes: Hashes, ordered: Hashes, n: int) -> int:
    ends = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = np.concatenate((_ZERO, ends))
    counts = np.concatenate((ends, [len(ordered)])) - starts
    most = int(counts.max())
    first = 0
    if most > 1:
        tied = ordered[starts[counts == most]]
        places = _places(hashes, tied)
        nearest = np.minimum(np.searchsorted(tied, hashes[places]), len(tied) - 1)
        first = int(places[(tied[nearest] == hashes[places]).argmax()])
    return most * (int(words.bounds[first + n] - words.bounds[first]) + n - 1)


def _places(hashes: Hashes, wanted: Hashes) -> npt.NDArray[np.intp]:
    """Positions in `hashes` of the `wanted` ones, and a few others: only leading bits are compared."""
    bits = (16 * len(hashes)).bit_length()
    shift = np.uint64(64 - bits)
    marked = np.zeros(1 << bits, bool)
    marked[wanted >> shift] = True
    return np.flatnonzero(marked[hashes >> shift])


def _covered_chars(words: Words, places: npt.NDArray[np.intp], n: int) -> int:
    """Characters in the n-grams that begin at these positions, an upper bound of those in repeats."""
    steps = np.zeros(len(words) + 1, np.int64)
    steps[places] = 1
    steps[places + n] -= 1
    return int(words.lengths[np.cumsum(steps)[:-1] > 0].sum())


def _repeated_chars(words: Words, places: npt.NDArray[np.intp], n: int) -> int:
    seen: set[str] = set()
    chars = free = 0
    for begin, end in zip(words.bounds[places].tolist(), words.bounds[places + n].tolist(), strict=True):
        if begin < free:
            continue
        text = words.joined[begin:end]
        if text in seen:
            chars += end - begin
            free = end
        else:
            seen.add(text)
    return chars

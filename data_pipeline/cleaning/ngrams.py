"""How much of a text its most frequent and its repeated sequences of words hold.

Hashes of all sequences of a length are sorted to see what comes again; most texts are settled by bounds from that.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from data_pipeline.cleaning.words import Hashes, Words

_PADDING = np.arange(16, dtype=np.uint64)
_ZERO = np.zeros(1, np.int64)


def frequent_size(words: Words, shares: Mapping[int, float], num_chars: int) -> int | None:
    """The first n whose most frequent n-gram holds a larger share of the characters, counting one space between words.

    Of equally frequent n-grams the first in the text is meant.
    """
    hashes, ordered = _by_size(words, shares, words.sequence_hashes)
    for row, (n, here) in enumerate(hashes.items()):
        longest = n * words.longest + n - 1
        least = max(1, int(shares[n] * num_chars / longest))  # no n-gram that occurs less often can hold so much
        again = ordered[row, least - 1 :] == ordered[row, : ordered.shape[1] - least + 1]
        if again.any() and _top_chars(words, here, ordered[row], n) / num_chars > shares[n]:
            return n
    return None


def repeated_size(words: Words, shares: Mapping[int, float], num_chars: int) -> int | None:
    """The first n whose n-grams that occurred before hold a larger share, taken from left to right without overlap.

    N-grams are compared as text without spaces; hashes only find the places worth a look.
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
    """Hashes of all n-grams by n, and the same sorted, a row for each n; what fills a row's end occurs once."""
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
    """Where one of these hashes stands; a few other places with them."""
    bits = (16 * len(hashes)).bit_length()
    shift = np.uint64(64 - bits)
    marked = np.zeros(1 << bits, bool)
    marked[wanted >> shift] = True
    return np.flatnonzero(marked[hashes >> shift])


def _covered_chars(words: Words, places: npt.NDArray[np.intp], n: int) -> int:
    """Characters in the n-grams that begin at these places: no fewer than those in repeats."""
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

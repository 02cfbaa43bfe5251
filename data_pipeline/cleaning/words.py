"""Splits a document into words, by one rule for all steps, and computes arrays over the words.

The rule follows spaCy's English tokenizer, with which the published thresholds are usually applied, as closely as a
regular expression can: marks at the borders of a space-separated string are words of their own, marks inside it usually
are not.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.cleaning.characters import TERMINAL, kinds

Hashes = npt.NDArray[np.uint64]

WORDS_VERSION = 1
"""Part of every step's digest."""

_MARKS = r"!\"#$%&'()*,.:;<=>?\[\]_`{}¡£§«·»¿،؛؟٪۔।‒-―‘-‟…、。〈-】！，：；？～€"
_CORE = rf"[^\s{_MARKS}/-]++"
_CLITIC = r"['’](?:[smdtSMDT]|re|ve|ll|RE|VE|LL)\b"
_INNER = rf"(?:[/:<>=,-](?![^\W\d_])|(?!{_CLITIC})['’]|[!\"#$%&()*.;?\[\]_`{{}}“”])++"
# All quantifiers are possessive, so that each character is examined a bounded number of times.
_TAIL = rf"{_CORE}(?:{_INNER}{_CORE})*+"
_WORD = re.compile(rf"{_TAIL}|(?<!\S)[/-]++{_TAIL}|{_CLITIC}|\.\.++|[/-]++|\S")


def split_words(text: str) -> list[str]:
    """The words of a text. Every character except whitespace is in exactly one word."""
    return _WORD.findall(text)


def count_sentences(words: Sequence[str], enough: int) -> int:
    """The number of sentences, as spaCy's sentencizer counts: one ends before the word after its closing marks.

    Stops counting at `enough`.
    """
    count, closed = 1, False
    for word in words:
        if word in TERMINAL:
            closed = True
        elif closed and not _is_punctuation(word):
            count, closed = count + 1, False
            if count >= enough:
                break
    return count


@functools.lru_cache(1 << 12)
def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(char).startswith("P") for char in word)


_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xD6E8FEB86659FD93)


def _powers(count: int) -> Hashes:
    return np.multiply.accumulate(np.full(count, _BASE, np.uint64))


_SHORT_POWERS = _powers(1 << 12)


class Words:
    """A list of words with arrays over them, computed on first use."""

    def __init__(self, words: list[str]) -> None:
        self.list = words

    def __len__(self) -> int:
        return len(self.list)

    @functools.cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.fromiter(map(len, self.list), np.int64, len(self.list))

    @functools.cached_property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))

    @functools.cached_property
    def bounds(self) -> npt.NDArray[np.int64]:
        """The start of each word in `joined`, and the end of the last."""
        bounds = np.zeros(len(self.list) + 1, np.int64)
        np.cumsum(self.lengths, out=bounds[1:])
        return bounds

    @functools.cached_property
    def joined(self) -> str:
        """All words, concatenated without separators."""
        return "".join(self.list)

    @functools.cached_property
    def _codes(self) -> npt.NDArray[np.uint32]:
        return np.frombuffer(self.joined.encode("utf-32-le", "surrogatepass"), np.uint32)

    @functools.cached_property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """SOLID and ALPHA for each word, set if any of its characters has them."""
        if not self.list:
            return np.zeros(0, np.uint8)
        return np.bitwise_or.reduceat(kinds()[self._codes], self.bounds[:-1])

    @functools.cached_property
    def _power_table(self) -> Hashes:
        """Powers of the hash's base."""
        return _SHORT_POWERS if self.longest <= len(_SHORT_POWERS) else _powers(self.longest)

    @functools.cached_property
    def _shifts(self) -> Hashes:
        """The base to the power of each length."""
        return self._power_table[self.lengths - 1]

    @functools.cached_property
    def hashes(self) -> Hashes:
        """Polynomial hashes of the characters, modulo 2**64: hash(ab) = hash(a) + base**len(a) * hash(b)."""
        if not self.list:
            return np.zeros(0, np.uint64)
        places = np.arange(len(self._codes)) - np.repeat(self.bounds[:-1], self.lengths)
        values = (self._codes.astype(np.uint64) + np.uint64(1)) * self._power_table[places]
        return np.add.reduceat(values, self.bounds[:-1])

    def joined_hashes(self, last: Hashes) -> Hashes:
        """Hashes of n concatenated words, from those of n - 1 words. Equal text has an equal hash."""
        return self.hashes[: len(last) - 1] + self._shifts[: len(last) - 1] * last[1:]

    def sequence_hashes(self, last: Hashes) -> Hashes:
        """Hashes of n words in sequence, from those of n - 1 words. Equal words have an equal hash."""
        return last[:-1] * _MIX + self.hashes[len(self.list) - len(last) + 1 :]

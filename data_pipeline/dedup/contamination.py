"""Finds benchmark text in training documents: any n-gram of words that both contain (n = 13 in Brown et al. 2020).

Words are defined in words.py: case and punctuation do not matter. Only hashes of the n-grams are stored, as a sorted
array that worker processes memory-map. A match is reported as written in the training document.
"""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_pipeline.dedup.words import Hashes, fold, ngrams, readable, split
from data_pipeline.errors import DataError
from data_pipeline.storage.atomic_write import write_durably

MIN_WORDS = 8
"""Shorter held-out texts are ignored, because they would be found by chance."""

_FORMAT = int.from_bytes(b"heldout1", "big")
_HEAD = 5
"""Values before the hashes: format, n, texts, texts too short, and a bit mask of n-gram lengths."""
_FILTER_BITS = 24


class HeldOutNgrams:
    """The n-grams that training documents must not contain."""

    def __init__(self, stored: Hashes) -> None:
        self._stored = stored
        self._hashes = stored[_HEAD:]
        _, self.n, self.num_texts, self.num_too_short, lengths = (int(number) for number in stored[:_HEAD])
        self._lengths = [length for length in range(lengths.bit_length()) if lengths >> length & 1]
        bits = min(_FILTER_BITS, len(self._hashes).bit_length() + 4)
        self._filter_shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, bool)
        self._filter[self._hashes >> self._filter_shift] = True

    @classmethod
    def of(cls, texts: Iterable[str], n: int = 13) -> "HeldOutNgrams":
        """All n-grams of the texts. A text with fewer than `n` words is one n-gram, or too short below MIN_WORDS
        words."""
        if not MIN_WORDS <= n < 64:
            raise DataError(f"data.decontaminate.ngram={n}: must be {MIN_WORDS} to 63 words", "13 is usual")
        runs: list[Hashes] = [np.empty(0, np.uint64)]
        num_texts = num_too_short = lengths = 0
        for text in texts:
            num_texts += 1
            words = split(fold(text)).hashes
            length = min(n, len(words))
            if length < MIN_WORDS:
                num_too_short += 1
            else:
                lengths |= 1 << length
                runs.append(ngrams(words, length))
        head = np.array([_FORMAT, n, num_texts, num_too_short, lengths], np.uint64)
        return cls(np.concatenate([head, np.unique(np.concatenate(runs))]))

    @classmethod
    def load(cls, path: Path) -> "HeldOutNgrams":
        """Memory-map what `save` wrote; processes share the memory."""
        remedy = "create it again from the held-out texts"
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: held-out n-grams cannot be read ({error})", remedy) from None
        is_plain = isinstance(stored, np.ndarray) and stored.dtype == np.uint64 and stored.ndim == 1
        if not is_plain or len(stored) < _HEAD or stored[0] != _FORMAT:
            raise DataError(f"{path}: does not hold held-out n-grams", remedy)
        return cls(stored)

    def save(self, path: Path) -> None:
        """Write a .npy file."""
        content = io.BytesIO()
        np.save(content, self._stored)
        write_durably(path, content.getvalue())

    @property
    def num_ngrams(self) -> int:
        return len(self._hashes)

    @property
    def digest(self) -> str:
        """Equal digests find the same n-grams in every text."""
        return hashlib.sha256(self._stored.astype("<u8").tobytes()).hexdigest()

    def found_in(self, text: str) -> str | None:
        """The first of the n-grams that `text` contains, as written there except for blanks, or None."""
        folded = fold(text)
        words = split(folded)
        hits = [(place, length) for length in self._lengths for place in self._places(ngrams(words.hashes, length))]
        if not hits:
            return None
        place, length = min(hits)
        return readable(folded[words.starts[place] : words.ends[place + length - 1]])

    def _places(self, runs: Hashes) -> list[int]:
        """The index of the first of `runs` that is held out, as a list of at most one element."""
        maybe = np.flatnonzero(self._filter[runs >> self._filter_shift])
        if not maybe.size:
            return []
        at = np.searchsorted(self._hashes, runs[maybe])
        at[at == len(self._hashes)] = 0
        return maybe[self._hashes[at] == runs[maybe]][:1].tolist()

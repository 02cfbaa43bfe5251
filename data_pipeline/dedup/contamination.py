"""Text of benchmarks found in training documents: any run of `n` words that stands in both (13 in Brown et al. 2020).

Words are those of words.py: case and punctuation do not matter. Only hashes of the runs are kept, as one sorted array
that worker processes map from a file; what was found is told in the words of the training document.
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
"""A held-out text of fewer words is not looked for: it would be found by chance."""

_FORMAT = int.from_bytes(b"heldout1", "big")
_HEAD = 5
"""Numbers before the hashes: format, n, texts, texts too short, and a bit for each length of a run."""
_FILTER_BITS = 24


class HeldOutNgrams:
    """All runs of words that must not stand in a training document."""

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
        """Every run of `n` words; a shorter text is one run as a whole, or too short if it has under MIN_WORDS."""
        if not MIN_WORDS <= n < 64:
            raise DataError(f"data.decontaminate.ngram={n}: must be {MIN_WORDS} to 63 words; 13 is usual")
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
        """What `save` wrote, as a memory map that processes share."""
        remedy = "make it anew from the held-out texts"
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: held-out runs of words cannot be read ({error}); {remedy}") from None
        is_plain = isinstance(stored, np.ndarray) and stored.dtype == np.uint64 and stored.ndim == 1
        if not is_plain or len(stored) < _HEAD or stored[0] != _FORMAT:
            raise DataError(f"{path}: does not hold the runs of words of held-out texts; {remedy}")
        return cls(stored)

    def save(self, path: Path) -> None:
        """As a .npy file."""
        content = io.BytesIO()
        np.save(content, self._stored)
        write_durably(path, content.getvalue())

    @property
    def num_ngrams(self) -> int:
        return len(self._hashes)

    @property
    def digest(self) -> str:
        """Of what is looked for: equal digests find the same in any text."""
        return hashlib.sha256(self._stored.astype("<u8").tobytes()).hexdigest()

    def found_in(self, text: str) -> str | None:
        """The first of the runs that stands in `text`, as it stands there but for blanks; None if there is none."""
        folded = fold(text)
        words = split(folded)
        hits = [(place, length) for length in self._lengths for place in self._places(ngrams(words.hashes, length))]
        if not hits:
            return None
        place, length = min(hits)
        return readable(folded[words.starts[place] : words.ends[place + length - 1]])

    def _places(self, runs: Hashes) -> list[int]:
        """Where the first of `runs` stands that is held out: one place or none."""
        maybe = np.flatnonzero(self._filter[runs >> self._filter_shift])
        if not maybe.size:
            return []
        at = np.searchsorted(self._hashes, runs[maybe])
        at[at == len(self._hashes)] = 0
        return maybe[self._hashes[at] == runs[maybe]][:1].tolist()

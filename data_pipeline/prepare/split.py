"""Chooses the documents that are held out and those that train the tokenizer, by content hash, in bounded memory.

Both are pure functions of the set of documents, independent of their order and of the machine.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from data_pipeline.document import KEY_RANGE, content_hash, hash_key

SPLIT_PURPOSE = "split"


class LowestKeys:
    """Keeps the documents with the lowest keys, as many as are needed to reach `limit_bytes`, or all if they do not."""

    def __init__(self, limit_bytes: int, *, count_copies: bool = True) -> None:
        """Documents with equal keys are copies. All copies count, or only one if `count_copies` is False."""
        self._limit_bytes = limit_bytes
        self._count_copies = count_copies
        self._sizes: dict[int, int] = {}
        self._heap: list[int] = []  # negated keys, so the highest key comes first
        self._total = 0

    def add(self, key: int, num_bytes: int) -> list[int]:
        """Add a document. Returns the keys that are now ruled out for good."""
        if key in self._sizes:
            if not self._count_copies:
                return []
            self._sizes[key] += num_bytes
        elif self._heap and self._total >= self._limit_bytes and key > -self._heap[0]:
            return [key]
        else:
            self._sizes[key] = num_bytes
            heapq.heappush(self._heap, -key)
        self._total += num_bytes
        left = []
        while self._heap and self._total - self._sizes[-self._heap[0]] >= self._limit_bytes:
            left.append(-heapq.heappop(self._heap))
            self._total -= self._sizes.pop(left[-1])
        return left

    def sizes(self) -> Iterator[tuple[int, int]]:
        """(key, bytes) in ascending order of keys."""
        return iter(sorted(self._sizes.items()))


@dataclass(frozen=True)
class Split:
    """A document is held out if its split key is below the threshold."""

    threshold: int
    held_out_bytes: int
    wanted_bytes: int

    def holds_out(self, content: bytes) -> bool:
        return hash_key(content, SPLIT_PURPOSE) < self.threshold


class Selector:
    """Sees every document once, then decides which are held out and which train the tokenizer."""

    def __init__(self, data: DataConfig, sample_bytes: int, seed: int) -> None:
        self._fraction = data.validation_fraction
        self._min_bytes = data.validation_min_bytes
        self._fraction_key = int(data.validation_fraction * KEY_RANGE)
        self._fraction_bytes = 0
        self._lowest = LowestKeys(data.validation_min_bytes)
        self._sample_bytes = sample_bytes
        self._sample_purpose = f"tokenizer {seed}"
        self._sample = LowestKeys(sample_bytes, count_copies=False)
        self._undecided: dict[int, tuple[int, int]] = {}
        """The sample key and size, by split key, of documents that may be held out to reach the minimum size."""
        self._digest = hashlib.sha256()
        self.num_documents = 0
        self.num_bytes = 0

    def add(self, content: bytes, num_bytes: int) -> None:
        """Add a document by its content hash and size."""
        self._digest.update(content)
        self.num_documents += 1
        self.num_bytes += num_bytes
        key = hash_key(content, SPLIT_PURPOSE)
        if key < self._fraction_key:
            self._fraction_bytes += num_bytes
        self._undecided[key] = (self.sample_key(content), num_bytes)
        for decided in self._lowest.add(key, num_bytes):
            candidate = self._undecided.pop(decided)
            if decided >= self._fraction_key:
                self._sample.add(*candidate)

    @property
    def digest(self) -> str:
        """Hash of the content of all documents, in order."""
        return self._digest.hexdigest()

    def split(self) -> Split:
        """Hold out the fraction, and more documents if needed to reach the minimum size, but at most half."""
        least = min(self._min_bytes, self.num_bytes // 2)
        wanted = max(least, int(self._fraction * self.num_bytes))
        reached = 0
        for key, num_bytes in self._lowest.sizes():
            if reached >= least:
                break
            reached += num_bytes
            if key >= self._fraction_key and reached >= least:
                return Split(key + 1, reached, wanted)
        return Split(self._fraction_key, self._fraction_bytes, wanted)

    def sampled_keys(self) -> set[int]:
        """Keys of the documents that `sample` needs. They exclude held-out documents."""
        threshold = self.split().threshold
        chosen = LowestKeys(self._sample_bytes, count_copies=False)
        for key, num_bytes in self._sample.sizes():
            chosen.add(key, num_bytes)
        for split_key, candidate in self._undecided.items():
            if split_key >= threshold:
                chosen.add(*candidate)
        return {key for key, _ in chosen.sizes()}

    def sample_key(self, content: bytes) -> int:
        return hash_key(content, self._sample_purpose)

    def sample(self, documents: Iterable[str]) -> list[str]:
        """The texts for training the tokenizer: `sample_bytes` bytes, or all if there are fewer.

        They exclude held-out documents. `documents` must include all documents with the sampled keys, in any order.
        """
        wanted = self.sampled_keys()
        found: dict[int, bytes] = {}
        for text in documents:
            key = self.sample_key(content_hash(text))
            if key in wanted:
                found[key] = text.encode()
        texts: list[str] = []
        room = self._sample_bytes
        for key in sorted(wanted):
            texts.append(found[key][:room].decode(errors="ignore"))  # only the last one may be cut
            room -= len(found[key])
        return texts

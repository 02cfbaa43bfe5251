"""Which documents are held out and which train the tokenizer: by hashes of their content, in bounded memory.

Both are pure functions of the set of documents; neither their order nor the machine enters.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from data_pipeline.document import KEY_RANGE, content_hash, hash_key

SPLIT_PURPOSE = "split"


class LowestKeys:
    """The documents with the lowest keys, just as many as reach `limit_bytes`; all if together they do not."""

    def __init__(self, limit_bytes: int, *, count_copies: bool = True) -> None:
        """`count_copies`: the bytes of documents with equal keys add up, else such a document counts once."""
        self._limit_bytes = limit_bytes
        self._count_copies = count_copies
        self._sizes: dict[int, int] = {}
        self._heap: list[int] = []  # negative keys: the highest one comes first
        self._total = 0

    def add(self, key: int, num_bytes: int) -> list[int]:
        """See a document; the keys that now are not, or no longer, among the lowest, and never will be."""
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
        """(key, bytes) from the lowest key on."""
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
    """Sees every document once, then says which are held out and which train the tokenizer."""

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
        """By split key, of those that may be held out for the least size: the key for the sample, and the bytes."""
        self._digest = hashlib.sha256()
        self.num_documents = 0
        self.num_bytes = 0

    def add(self, content: bytes, num_bytes: int) -> None:
        """See a document: its content hash and its size."""
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
        """Over the content of all documents, in order."""
        return self._digest.hexdigest()

    def split(self) -> Split:
        """The fraction, and beyond it as many as the least size asks for, but not more than half."""
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
        """Of the documents that `sample` wants to see, none of them held out."""
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
        """Texts to train the tokenizer on: `sample_bytes` of them, or all if there are fewer; none of them held out.

        `documents`: at least those with the sampled keys, in any order.
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

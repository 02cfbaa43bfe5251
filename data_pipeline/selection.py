"""Which documents are held out and which train the tokenizer: by hashes of their content, in bounded memory.

Both are pure functions of the set of documents; neither their order nor the machine enters.
"""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from data_pipeline.document import KEY_RANGE, Document, content_hash, hash_key

SPLIT_PURPOSE = "split"


class LowestKeys:
    """The documents with the lowest keys, just as many as reach `limit_bytes`; all if together they do not."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._sizes: dict[int, int] = {}
        self._texts: dict[int, bytes] = {}
        self._heap: list[int] = []  # negative keys: the highest one comes first
        self._total = 0

    def add(self, key: int, num_bytes: int, text: str | None = None) -> None:
        """Offer a document; the bytes of copies (equal keys) add up, unless their text is kept, which counts once."""
        if key in self._sizes:
            if text is not None:
                return
            self._sizes[key] += num_bytes
        elif self._heap and self._total >= self._limit_bytes and key > -self._heap[0]:
            return
        else:
            self._sizes[key] = num_bytes
            heapq.heappush(self._heap, -key)
            if text is not None:
                self._texts[key] = text.encode()
        self._total += num_bytes
        while self._heap and self._total - self._sizes[-self._heap[0]] >= self._limit_bytes:
            highest = -heapq.heappop(self._heap)
            self._total -= self._sizes.pop(highest)
            self._texts.pop(highest, None)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """(key, bytes) from the lowest key on."""
        return iter(sorted(self._sizes.items()))

    def texts(self) -> Iterator[tuple[int, bytes]]:
        """(key, text) from the lowest key on."""
        return iter(sorted(self._texts.items()))


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
        self._sample = LowestKeys(sample_bytes)
        self._digest = hashlib.sha256()
        self.num_documents = 0
        self.num_bytes = 0

    def add(self, document: Document) -> None:
        content = content_hash(document.text)
        self.add_content(content, document.num_bytes)
        if self._sample_bytes:
            self._sample.add(hash_key(content, self._sample_purpose), document.num_bytes, document.text)

    def add_content(self, content: bytes, num_bytes: int) -> None:
        """A document that is known by its hash alone: it can train no tokenizer."""
        self._digest.update(content)
        self.num_documents += 1
        self.num_bytes += num_bytes
        key = hash_key(content, SPLIT_PURPOSE)
        if key < self._fraction_key:
            self._fraction_bytes += num_bytes
        self._lowest.add(key, num_bytes)

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

    def sample(self) -> list[str]:
        """Texts to train the tokenizer on, `sample_bytes` at most; none of them held out."""
        split = self.split()
        texts: list[str] = []
        room = self._sample_bytes
        for _, stored in self._sample.texts():
            text = stored[:room].decode(errors="ignore")  # only the last one may be cut
            room -= len(stored)
            if not split.holds_out(content_hash(stored.decode())):
                texts.append(text)
            if room <= 0:
                break
        return texts

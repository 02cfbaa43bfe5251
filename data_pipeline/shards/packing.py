"""Packs documents into samples of `width` tokens: as one long stream cut into samples, or by best fit.

Best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling") cuts only documents longer than a
sample and fills the rest of a sample with end-of-document tokens. Documents are not empty. Therefore, in a run of
end-of-document tokens at a sample's end, the first belongs to a document and the rest are padding: the loss mask
follows from the tokens alone, for both kinds of packing.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

BLOCK_SAMPLES = 64
WINDOW_TOKENS = 1 << 22
Packing = Literal["stream", "best_fit"]
Tokens = npt.NDArray[Any]


class Packer(Protocol):
    """Takes documents and yields samples [n, width]. A yielded array is valid until the next one is asked for."""

    def add(self, tokens: Tokens, lengths: npt.NDArray[np.int64]) -> Iterator[Tokens]:
        """Add documents of these lengths, end-of-document tokens included. Yields the samples that are complete."""
        ...

    def close(self) -> Iterator[Tokens]:
        """Yields the samples that were waiting for more documents."""
        ...


def make_packer(packing: Packing, width: int, descr: str, eod_id: int) -> Packer:
    """`descr` is the numpy type of the samples, `eod_id` the token that ends a document."""
    return StreamPacker(width, descr) if packing == "stream" else BestFitPacker(width, descr, eod_id)


class StreamPacker:
    """Sample i holds tokens i * (width - 1) to (i + 1) * (width - 1) inclusive of one long row. Neighbouring samples
    share a token, so that each token but the first is predicted exactly once."""

    def __init__(self, width: int, descr: str) -> None:
        self._step = width - 1
        # A block of samples. Its last token is the first of the next block.
        self._pending = np.empty(BLOCK_SAMPLES * self._step + 1, dtype=descr)
        self._filled = 0

    def add(self, tokens: Tokens, lengths: npt.NDArray[np.int64]) -> Iterator[Tokens]:
        while len(tokens):
            taken = min(len(tokens), len(self._pending) - self._filled)
            self._pending[self._filled : self._filled + taken] = tokens[:taken]
            self._filled += taken
            tokens = tokens[taken:]
            if self._filled == len(self._pending):
                yield self._samples(BLOCK_SAMPLES)
                self._pending[0] = self._pending[-1]
                self._filled = 1

    def close(self) -> Iterator[Tokens]:
        if self._filled > self._step:
            yield self._samples((self._filled - 1) // self._step)

    def _samples(self, count: int) -> Tokens:
        size = self._pending.itemsize
        strides = (self._step * size, size)
        return np.lib.stride_tricks.as_strided(self._pending, (count, self._step + 1), strides, writeable=False)


class BestFitPacker:
    """Packs a window of documents at a time, so that memory stays bounded."""

    def __init__(self, width: int, descr: str, eod_id: int, window_tokens: int = WINDOW_TOKENS) -> None:
        self._width, self._eod_id = width, eod_id
        self._tokens = np.empty(window_tokens + width, dtype=descr)
        self._window = window_tokens
        self._lengths: list[int] = []
        self._filled = 0

    def add(self, tokens: Tokens, lengths: npt.NDArray[np.int64]) -> Iterator[Tokens]:
        ends = np.cumsum(lengths).tolist()
        for start, end in itertools.pairwise([0, *ends]):
            for first in range(start, end, self._width):
                chunk = tokens[first : min(first + self._width, end)]
                self._tokens[self._filled : self._filled + len(chunk)] = chunk
                self._filled += len(chunk)
                self._lengths.append(len(chunk))
                if self._filled >= self._window:
                    yield from self.close()

    def close(self) -> Iterator[Tokens]:
        ends = np.cumsum(self._lengths).tolist()
        chosen = best_fit(self._lengths, self._width)
        for first in range(0, len(chosen), BLOCK_SAMPLES):
            block = chosen[first : first + BLOCK_SAMPLES]
            samples = np.full((len(block), self._width), self._eod_id, dtype=self._tokens.dtype)
            for sample, chunks in zip(samples, block, strict=True):
                filled = 0
                for chunk in chunks:
                    length = self._lengths[chunk]
                    sample[filled : filled + length] = self._tokens[ends[chunk] - length : ends[chunk]]
                    filled += length
            yield samples
        self._lengths, self._filled = [], 0


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The chunks in each sample: longest first, each placed where it leaves the least room.

    Samples, and the chunks in them, are in the order of their first chunk.
    """
    samples: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # samples by their number of free tokens
    rooms: list[int] = []  # the keys, ascending
    for chunk in sorted(range(len(lengths)), key=lambda chunk: -lengths[chunk]):
        length = lengths[chunk]
        at = bisect.bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
            left = room - length
        else:
            number = len(samples)
            samples.append([])
            # A chunk that is only an end-of-document token would look like padding after another one, so it gets no
            # room after it.
            left = width - length if length > 1 else 0
        samples[number].append(chunk)
        if left and left not in with_room:
            with_room[left] = []
            bisect.insort(rooms, left)
        if left:
            with_room[left].append(number)
    for chunks in samples:
        chunks.sort(key=lambda chunk: (lengths[chunk] > 1, chunk))  # for the same reason, chunks of one token go first
    return sorted(samples, key=min)


def num_padding_tokens(samples: Tokens, eod_id: int) -> npt.NDArray[np.int64]:
    """How many tokens at the end of each sample [n, width] are padding."""
    others = samples[:, ::-1] != eod_id
    run = np.where(others.any(axis=1), others.argmax(axis=1), samples.shape[1])
    return np.maximum(run - 1, 0).astype(np.int64)


def loss_mask(samples: Tokens, eod_id: int) -> npt.NDArray[np.bool_]:
    """Which targets [n, width - 1] of samples [n, width] are not padding."""
    width = samples.shape[1]
    return np.arange(1, width) < (width - num_padding_tokens(samples, eod_id))[:, None]

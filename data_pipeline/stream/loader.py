"""Batches of tokens for one data-parallel rank. The whole state of the stream is one integer, the position.

Ranks are plain integers: rank r of `size` computes its part of each global batch from the position, so any other number
of ranks continues the same order.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.errors import DataError
from data_pipeline.permutation import splitmix64
from data_pipeline.prefetch import prefetch
from data_pipeline.shards.packing import loss_mask
from data_pipeline.shards.reader import PackedDataset, Tokens
from data_pipeline.stream.mixture import TrainingData
from data_pipeline.stream.shard_prefetch import prefetch_shards

MAX_WINDOW_BATCHES = 1024
WINDOW_BYTES = 32 << 20  # about three windows are in memory at once
FIRST_ORDER_SAMPLES, ORDER_SAMPLES = 1 << 14, 1 << 16  # positions whose order is computed at once; takes 2 and 8 ms


class Batch(NamedTuple):
    """This rank's samples of one global batch."""

    tokens: torch.Tensor
    """int64 [n, seq_length + 1]: the inputs and, shifted by one, the targets."""
    mask: torch.Tensor | None
    """bool [n, seq_length]: which targets count. Padding of a sample or of the batch, and skipped samples, do not.
    None: all count. Either every batch of a stream has a mask or none has."""
    position: int
    """Global position of the first sample of the global batch."""
    next_position: int
    """The position of the next global batch. This is all that a resume needs."""
    epoch: int
    """Complete passes over the dataset before `position`; for a mixture, over the dataset with the most passes."""
    digest: int
    """Sum over this rank's samples that count of a hash of position and content, mod 2**64, as signed int64. Summed
    over ranks with the same wrap-around, it identifies the global batch, whatever the number of ranks. The content
    enters through the hash (XXH3, 64 bits) of the member that holds the sample; its bytes are checked against that hash
    when they are first read."""
    num_skipped: int = 0
    """This rank's samples that do not count because their shard is bad."""


def train_batches(
    dataset: TrainingData,
    *,
    seed: int,
    global_batch_size: int,
    rank: int,
    size: int,
    position: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[Batch, None, None]:
    """Endless shuffled batches from a global position on, prefetched by a thread that ends with the iterator.

    If the next batch is not ready and `should_stop` returns true, the batches end.
    """
    assert 0 <= rank < size and global_batch_size % size == 0 and position >= 0
    return _stream(dataset, seed, global_batch_size, rank, size, position, should_stop)


def _stream(
    dataset: TrainingData,
    seed: int,
    global_batch_size: int,
    rank: int,
    size: int,
    position: int,
    should_stop: Callable[[], bool],
) -> Generator[Batch, None, None]:
    stop = threading.Event()
    windows = _train_windows(dataset, seed, global_batch_size, rank, size, position, stop)
    ahead = prefetch(windows, stop, materialize=_Window.materialize, should_stop=should_stop)
    with prefetch_shards(dataset, seed, position, stop), contextlib.closing(ahead) as ready:
        for window in ready:
            yield from window.batches(global_batch_size)


def evaluation_batches(
    dataset: PackedDataset, *, batch_size: int, rank: int, size: int, max_samples: int | None
) -> Generator[Batch, None, None]:
    """The first `max_samples` samples of a dataset (None: all) in stored order, once.

    `batch_size` is per rank. Every rank gets the same number of batches; the last ones are filled with repeated samples
    that do not count.
    """
    assert 0 <= rank < size and batch_size > 0
    num_samples = dataset.num_samples if max_samples is None else min(max_samples, dataset.num_samples)
    for start in range(0, num_samples, batch_size * size):
        positions = np.arange(start + rank * batch_size, start + (rank + 1) * batch_size)
        counts = positions < num_samples
        numbers = positions % num_samples
        tokens = dataset.read(numbers)
        yield Batch(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            mask=_mask(dataset, tokens, counts),
            position=start,
            next_position=min(start + batch_size * size, num_samples),
            epoch=0,
            digest=_digests(dataset, numbers[None], positions[None], counts[None])[0],
        )


def _train_windows(
    dataset: TrainingData,
    seed: int,
    global_batch_size: int,
    rank: int,
    size: int,
    position: int,
    stop: threading.Event,
) -> Iterator["_Window"]:
    """Coming batches in windows: read in file order, returned in batch order."""
    per_rank = global_batch_size // size
    largest = max(
        1, min(MAX_WINDOW_BATCHES, WINDOW_BYTES // (per_rank * (dataset.seq_length + 1) * dataset.dtype.itemsize))
    )
    # Each epoch is a separate permutation, so limit the number of epochs computed at once.
    longest = max(1, min(ORDER_SAMPLES, 8 * dataset.num_samples) // per_rank)
    # Both grow, so that the first batch does not wait for many others.
    num_ordered, length = max(1, min(longest, FIRST_ORDER_SAMPLES // per_rank)), 1
    while True:
        num_batches = num_ordered
        if dataset.end_position is not None:
            # The order is computed ahead of what is asked for, but not beyond a mixture's end.
            num_batches = min(num_ordered, (dataset.end_position - position) // global_batch_size)
            if not num_batches:
                raise DataError(
                    f"{dataset.description}: used up after {position:,} samples", "raise data.mixture_max_epochs"
                )
        starts = position + global_batch_size * np.arange(num_batches, dtype=np.int64)
        positions = starts[:, None] + rank * per_rank + np.arange(per_rank)
        samples = dataset.sample_indices(positions.ravel(), seed).reshape(positions.shape)
        first = 0
        while first < num_batches:
            window = slice(first, first + length)
            yield _Window(dataset, starts[window], positions[window], samples[window], stop)
            first, length = first + length, min(2 * length, largest)
        position += global_batch_size * num_batches
        num_ordered = min(2 * num_ordered, longest)


class _Window:
    """Batches that begin at `starts`, of `samples` [b, n] at `positions` [b, n], located by the prefetch thread."""

    def __init__(
        self,
        dataset: TrainingData,
        starts: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        samples: npt.NDArray[np.int64],
        stop: threading.Event,
    ) -> None:
        self._dataset = dataset
        self._starts, self._per_rank = starts.tolist(), positions.shape[1]
        self._epochs = [dataset.epoch_at(start) for start in self._starts]
        skipped = np.zeros(positions.shape, dtype=bool) if dataset.skips_bad_shards else None
        self._samples = dataset.locate(samples.ravel(), stop, None if skipped is None else skipped.ravel())
        self._counts = None if skipped is None else ~skipped
        self._some_may_not_count = skipped is not None or dataset.is_padded
        self._digests = _digests(dataset, samples, positions, self._counts)

    def materialize(self) -> None:
        """Copy the samples of all batches."""
        self._samples.materialize()

    def batches(self, global_batch_size: int) -> Iterator[Batch]:
        """Each batch is copied when it is taken, by the consumer's thread, so that it is in that core's cache."""
        mask, num_skipped, first = None, 0, 0
        for number, (start, epoch, digest) in enumerate(zip(self._starts, self._epochs, self._digests, strict=True)):
            tokens = self._samples.tokens(slice(first, first + self._per_rank))
            first += self._per_rank
            if self._some_may_not_count:
                counts = None if self._counts is None else self._counts[number]
                mask = _mask(self._dataset, tokens, counts)
                num_skipped = 0 if counts is None else int((~counts).sum())
            whole = torch.from_numpy(tokens.astype(np.int64))
            yield Batch(whole, mask, start, start + global_batch_size, epoch, digest, num_skipped)


def _mask(dataset: TrainingData, tokens: Tokens, counts: npt.NDArray[np.bool_] | None) -> torch.Tensor | None:
    """Which targets count: those of samples that count and that are not padding. None if all do."""
    whole = None if counts is None else torch.from_numpy(counts)[:, None].expand(-1, dataset.seq_length)
    if not dataset.is_padded:
        return whole
    mask = torch.from_numpy(loss_mask(tokens, dataset.manifest.tokenizer.eod_id))
    return mask if whole is None else whole & mask


def _digests(
    dataset: TrainingData,
    numbers: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    counts: npt.NDArray[np.bool_] | None,
) -> list[int]:
    """The digest of each batch of samples [b, n] at these positions. `counts` masks samples that do not count."""
    names = dataset.sample_hashes(numbers.ravel()).reshape(numbers.shape)
    hashes = splitmix64(names ^ splitmix64(positions.astype(np.uint64)))
    if counts is not None:
        hashes[~counts] = 0
    digests: list[int] = hashes.sum(axis=1).view(np.int64).tolist()
    return digests

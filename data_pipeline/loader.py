"""Batches of tokens for one data-parallel rank; the whole state of the stream is one integer, the position.

Ranks are plain integers here: rank r of `size` takes its part of each global batch by arithmetic on the position, so
any other size continues the same order.
"""

import contextlib
import hashlib
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.ahead import read_ahead
from data_pipeline.errors import DataError
from data_pipeline.mixture import TrainingData
from data_pipeline.remote.ahead import fetch_ahead
from data_pipeline.shards.packing import targets_that_count
from data_pipeline.shards.reader import PackedDataset, Tokens

MAX_WINDOW_BATCHES = 64
WINDOW_BYTES = 32 << 20  # of int64 tokens; about three windows are alive at once


@dataclass(frozen=True)
class Batch:
    """This rank's samples of one global batch."""

    tokens: torch.Tensor
    """int64 [n, seq_length + 1]: inputs and, one place on, targets."""
    mask: torch.Tensor | None
    """bool [n, seq_length]: which targets count, not being padding of a sample or of the batch; None: all."""
    position: int
    """Global position of the first sample of the global batch."""
    next_position: int
    """Where the next global batch begins: all that a resume needs."""
    epoch: int
    """Passes over the dataset (of a mixture: over the one passed over most often) that were complete at `position`."""
    digest: int
    """Sum of the hashes of this rank's samples that count, mod 2**64, as signed int64: summed over ranks with the same
    wrap-around it names the global batch, whatever the number of ranks."""


def train_batches(
    dataset: TrainingData, *, seed: int, global_batch_size: int, rank: int, size: int, position: int
) -> Generator[Batch, None, None]:
    """Endless shuffled batches from a global position on, read ahead by a thread that ends with the iterator."""
    assert 0 <= rank < size and global_batch_size % size == 0 and position >= 0
    return _stream(dataset, seed, global_batch_size, rank, size, position)


def _stream(
    dataset: TrainingData, seed: int, global_batch_size: int, rank: int, size: int, position: int
) -> Generator[Batch, None, None]:
    stop = threading.Event()
    windows = _train_windows(dataset, seed, global_batch_size, rank, size, position, stop)
    with fetch_ahead(dataset, seed, position, stop), contextlib.closing(read_ahead(windows, stop)) as ready:
        for window in ready:
            yield from window


def evaluation_batches(
    dataset: PackedDataset, *, batch_size: int, rank: int, size: int, max_samples: int | None
) -> Generator[Batch, None, None]:
    """The first samples of a dataset (all if max_samples is None) in their own order, once.

    `batch_size` is this rank's. Every rank gets the same number of batches; what is missing at the end is filled up
    with repeated samples that do not count.
    """
    assert 0 <= rank < size and batch_size > 0
    num_samples = dataset.num_samples if max_samples is None else min(max_samples, dataset.num_samples)
    for start in range(0, num_samples, batch_size * size):
        positions = np.arange(start + rank * batch_size, start + (rank + 1) * batch_size)
        counts = positions < num_samples
        tokens = dataset.read(positions % num_samples)
        mask = _mask(dataset, tokens)
        whole = torch.from_numpy(counts)[:, None].expand(-1, dataset.seq_length)
        yield Batch(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            mask=whole if mask is None else whole & mask,
            position=start,
            next_position=min(start + batch_size * size, num_samples),
            epoch=0,
            digest=_digest(positions[counts], tokens[counts]),
        )


def _train_windows(
    dataset: TrainingData,
    seed: int,
    global_batch_size: int,
    rank: int,
    size: int,
    position: int,
    stop: threading.Event,
) -> Iterator[list[Batch]]:
    """Coming batches, several at a time: read in the order of the files, handed out in the order of the batches."""
    per_rank = global_batch_size // size
    batch_bytes = per_rank * (dataset.seq_length + 1) * 8
    largest = max(1, min(MAX_WINDOW_BATCHES, WINDOW_BYTES // batch_bytes))
    num_batches = 1  # grows, so that the first batch does not wait for a whole window
    while True:
        if dataset.end is not None:
            # Windows reach ahead of what is asked for, and not beyond a mixture's end.
            num_batches = min(num_batches, (dataset.end - position) // global_batch_size)
            if not num_batches:
                raise DataError(f"{dataset.described}: used up after {position:,} samples; see data.mixture_max_epochs")
        starts = position + global_batch_size * np.arange(num_batches, dtype=np.int64)
        positions = starts[:, None] + rank * per_rank + np.arange(per_rank)
        samples = dataset.samples_at(positions.ravel(), seed)
        in_file_order = np.argsort(samples, kind="stable")
        places = np.empty_like(in_file_order)
        places[in_file_order] = np.arange(len(places))
        tokens = dataset.read(samples[in_file_order], stop)
        window = []
        for start, row_positions, rows in zip(starts.tolist(), positions, places.reshape(positions.shape), strict=True):
            batch_tokens = tokens[rows]
            window.append(
                Batch(
                    tokens=torch.from_numpy(batch_tokens.astype(np.int64)),
                    mask=_mask(dataset, batch_tokens),
                    position=start,
                    next_position=start + global_batch_size,
                    epoch=dataset.epoch_at(start),
                    digest=_digest(row_positions, batch_tokens),
                )
            )
        yield window
        position += global_batch_size * num_batches
        num_batches = min(2 * num_batches, largest)


def _mask(dataset: TrainingData, tokens: Tokens) -> torch.Tensor | None:
    """Which targets count, where the dataset has some that don't."""
    if not dataset.is_padded:
        return None
    return torch.from_numpy(targets_that_count(tokens, dataset.manifest.tokenizer.eod_id))


def _digest(positions: npt.NDArray[np.int64], tokens: Tokens) -> int:
    total = 0
    for position, row in zip(positions.tolist(), tokens, strict=True):
        sample = hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8)
        sample.update(row)
        total += int.from_bytes(sample.digest(), "little")
    total %= 1 << 64
    return total - (1 << 64) if total >> 63 else total

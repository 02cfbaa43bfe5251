"""A split as the long rows of tokens that it was cut from."""

import itertools
from collections.abc import Iterator

import numpy as np

from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset, Tokens

PARTS_KEY = "merged"
"""Setting of a merged dataset: lists its parts, each with its number of samples per split."""
READ_BYTES = 16 << 20


def part_bounds(manifest: Manifest, split: str) -> list[int]:
    """The sample numbers at which the parts of a merged dataset begin, and the total. Other datasets have one part."""
    parts = manifest.settings.get(PARTS_KEY)
    if parts is None:
        return [0, manifest.splits[split].num_samples]
    return list(itertools.accumulate((part["samples"][split] for part in parts), initial=0))


def samples_of(dataset: PackedDataset, first: int, last: int) -> Iterator[Tokens]:
    """Samples from number `first` up to `last` (exclusive), in stored order, many at a time."""
    step = max(1, READ_BYTES // ((dataset.seq_length + 1) * dataset.dtype.itemsize))
    for start in range(first, last, step):
        yield dataset.read(np.arange(start, min(start + step, last), dtype=np.int64))


def rows_of(dataset: PackedDataset) -> Iterator[Iterator[Tokens]]:
    """The row of tokens of each part, in blocks. A token that neighbouring samples share comes once."""
    for first, last in itertools.pairwise(part_bounds(dataset.manifest, dataset.split)):
        yield _row(dataset, first, last)


def _row(dataset: PackedDataset, first: int, last: int) -> Iterator[Tokens]:
    for number, samples in enumerate(samples_of(dataset, first, last)):
        if not number:
            yield samples[0, :1]
        yield samples[:, 1:].ravel()

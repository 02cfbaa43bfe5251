"""Helpers that read a dataset at a URL."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from data_pipeline.config import CacheConfig
from data_pipeline.remote.folder import RemoteFolder
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches

SHARD, INDEX = "train-00001.tar", "train.index.npy"


def remote(url: str, cache: CacheConfig, **changes: object) -> PackedDataset:
    return PackedDataset.open(RemoteFolder(url, dataclasses.replace(cache, **changes)), "train")


def everything(dataset: PackedDataset) -> np.ndarray:
    return dataset.read(np.arange(dataset.num_samples))


def take(dataset, number: int, **options: int) -> list[tuple[list[list[int]], int]]:
    stream = train_batches(dataset, seed=3, global_batch_size=8, **{"rank": 0, "size": 1, "position": 0, **options})
    batches = [(batch.tokens.tolist(), batch.digest) for batch in itertools.islice(stream, number)]
    stream.close()
    return batches


def finished(cache: CacheConfig) -> list[Path]:
    return [path for path in Path(cache.dir).iterdir() if len(path.name) == 64]

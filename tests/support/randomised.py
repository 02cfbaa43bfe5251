"""Weights that no initialization gives: biases are not 0 and gains not 1, so that no swap of tensors goes unseen."""

import zlib

import torch
from torch import Tensor

from pretrain.engine.interface import Engine

WEIGHT = "weight/"


def random_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The whole tensor of this name, the same in every layout: matrices keep the scale of what they multiply."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) == 2:
        return 0.3 * values if "embedding" in name else 1.5 * values / shape[1] ** 0.5
    return 1.0 + 0.3 * values if "layernorm.weight" in name else 0.3 * values


def randomise(engine: Engine) -> None:
    """Fill the master weights of this rank, and compute with them."""
    for shard in engine.state_shards(weights_only=True):
        whole = random_weight(shard.name.removeprefix(WEIGHT), shard.shape)
        part = whole[tuple(slice(o, o + n) for o, n in zip(shard.origin, shard.part_shape, strict=True))]
        shard.data.copy_(part.reshape(-1)[shard.start : shard.start + shard.data.numel()])
    engine.load_counters(engine.counters())

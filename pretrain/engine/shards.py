"""Convert the optimizer's state ranges to shards of the logical tensors that a checkpoint stores."""

from collections.abc import Iterable, Iterator

import torch

from pretrain.engine.interface import StateShard
from pretrain.engine.optimizer.interface import StateRange
from pretrain.model.parameters import LogicalPart


def logical_shards(
    held: StateRange, parts: Iterable[LogicalPart], copy: int = 0, copies: int = 1
) -> Iterator[StateShard]:
    """Split a range at the borders of the logical tensors in its parameter, and drop vocabulary padding."""
    end = held.start + held.states["weight"].numel()
    for logical in parts:
        first = max(held.start, logical.offset)
        last = min(end, logical.offset + torch.Size(logical.part_shape).numel())
        if first < last:
            for kind, state in held.states.items():
                data = state[first - held.start : last - held.start]
                where = first - logical.offset
                name = f"{kind}/{logical.name}"
                yield StateShard(name, logical.shape, logical.origin, logical.part_shape, where, data, copy, copies)

"""Flat ranges as boxes, so that torch.distributed.checkpoint (DCP) can reshard them.

A ZeRO shard is a flat row-major range of a tensor-parallel rank's part of a tensor. Such a range is at most a few
boxes, and a box is a chunk of DCP: each rank writes its own chunks, and any other partition of the tensor can be read
back.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from pretrain.engine.interface import StateShard

BUCKET_BYTES = 64 << 20
"""The largest piece of a tensor that is written, or read, at once."""


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor, and where it begins in its flat range."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        return torch.Size(self.sizes).numel()


def boxes_of_range(shape: tuple[int, ...], start: int, length: int) -> list[Box]:
    """The boxes that together are elements `start` .. `start + length` of a row-major tensor, in order.

    At most 2 (dimensions - 1) + 1: a partial row, whole rows, a partial row, and the same within each partial row.
    """
    boxes: list[Box] = []
    _cut(shape, start, length, (), 0, boxes)
    return boxes


def _cut(shape: tuple[int, ...], start: int, length: int, prefix: tuple[int, ...], done: int, out: list[Box]) -> None:
    """Append the boxes of a range of the sub-tensor at index `prefix`; `done` elements of the range came before."""
    lead = (1,) * len(prefix)
    if length <= 0:
        return
    if len(shape) <= 1:
        out.append(Box((*prefix, start) if shape else prefix, (*lead, length) if shape else lead, done))
        return
    row = torch.Size(shape[1:]).numel()
    first = start % row
    if first:  # to the end of a partial row
        head = min(length, row - first)
        _cut(shape[1:], first, head, (*prefix, start // row), done, out)
        start, length, done = start + head, length - head, done + head
    whole = length // row
    if whole:
        zeros = (0,) * (len(shape) - 1)
        out.append(Box((*prefix, start // row, *zeros), (*lead, whole, *shape[1:]), done))
        start, length, done = start + whole * row, length - whole * row, done + whole * row
    if length:
        _cut(shape[1:], 0, length, (*prefix, start // row), done, out)


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor whose data is on this rank."""

    name: str
    shape: tuple[int, ...]
    """The shape of the whole tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    data: Tensor
    """A view of the live tensor, shaped as `sizes`."""


def chunks_of(shard: StateShard, first: int = 0, last: int | None = None) -> Iterator[Chunk]:
    """The boxes of elements `first` to `last` of a shard's range, none above a bucket's size."""
    end = shard.data.numel() if last is None else last
    bucket, row = BUCKET_BYTES // shard.data.element_size(), torch.Size(shard.part_shape[1:]).numel()
    most = bucket // row * row or bucket  # whole rows if any fit: a partial row is one more box
    while first < end:
        border = ((shard.start + first) // most + 1) * most - shard.start
        length = min(border, end) - first
        for box in boxes_of_range(shard.part_shape, shard.start + first, length):
            begin = first + box.start
            view = shard.data[begin : begin + box.numel].view(box.sizes)
            offsets = tuple(map(sum, zip(shard.origin, box.offsets, strict=True)))
            yield Chunk(shard.name, shard.shape, offsets, box.sizes, view)
        first += length


def own_chunks(shard: StateShard) -> Iterator[Chunk]:
    """The chunks that this rank writes: an equal share if several ranks hold copies of the shard."""
    numel = shard.data.numel()
    return chunks_of(shard, numel * shard.copy // shard.copies, numel * (shard.copy + 1) // shard.copies)


class ShardedTensor(Tensor):
    """A tensor of which this rank holds some chunks, to be read into. DCP sees its global shape and the chunks."""

    chunks: dict[tuple[int, ...], Chunk]

    @staticmethod
    def __new__(cls: type["ShardedTensor"], shards: list[StateShard]) -> "ShardedTensor":
        data = shards[0].data
        tensor = torch.Tensor._make_wrapper_subclass(cls, shards[0].shape, dtype=data.dtype, device=data.device)
        tensor.chunks = {chunk.offsets: chunk for shard in shards for chunk in chunks_of(shard)}
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} on a tensor of which this rank holds only parts")

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.sizes))
            for chunk in self.chunks.values()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.chunks[tuple(index.offset)].data


def state_dict_of(shards: Iterable[StateShard]) -> dict[str, ShardedTensor]:
    """The state dict that DCP reads into: one sharded tensor per name."""
    by_name: dict[str, list[StateShard]] = {}
    for shard in shards:
        by_name.setdefault(shard.name, []).append(shard)
    return {name: ShardedTensor(parts) for name, parts in by_name.items()}

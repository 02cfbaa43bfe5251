"""Whole tensors of a checkpoint, one at a time, whatever layout wrote it and without process groups."""

from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.index import StoredTensor, read_index
from pretrain.checkpoint.tensor_stats import read_chunk
from pretrain.config.errors import RunError

WEIGHT = "weight/"
"""The prefix of the fp32 weights in the index."""


class StoredWeights:
    """The weights of a checkpoint by their names in the whole model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors = {
            name.removeprefix(WEIGHT): tensor for name, tensor in read_index(folder).items() if name.startswith(WEIGHT)
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One whole tensor, fp32; at most one chunk of it is in memory a second time."""
        stored = self._tensors.get(name)
        if stored is None:
            raise RunError(f"{self.folder}: has no weight {name}")
        return _assembled(self.folder, stored)


def _assembled(folder: Path, stored: StoredTensor) -> Tensor:
    if len(stored.chunks) == 1 and stored.chunks[0].sizes == stored.shape:
        return read_chunk(folder, stored, stored.chunks[0])
    whole = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
    for chunk in stored.chunks:
        places = tuple(slice(first, last) for first, last in zip(chunk.offsets, chunk.ends, strict=True))
        whole[places] = read_chunk(folder, stored, chunk)
    return whole

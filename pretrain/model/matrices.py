"""The matrices of a linear layer that Megatron keeps in one parameter: queries, keys and values; gate and up."""

import torch
from torch import Tensor

from pretrain.config.model import ModelConfig

QKV, FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"


def matrices_of(name: str, whole: Tensor, model: ModelConfig) -> list[Tensor]:
    """The matrices in the whole parameter [rows, columns], whose gate and up are not interleaved over ranks."""
    if name.endswith(FC1) and model.activation == "swiglu":
        return list(whole.chunk(2))
    if name.endswith(QKV):
        return [part.reshape(-1, whole.shape[1]) for part in _by_group(whole, model)]
    return [whole]


def joined(name: str, matrices: list[Tensor], model: ModelConfig) -> Tensor:
    """The inverse of `matrices_of`."""
    if not name.endswith(QKV):
        return torch.cat(matrices)
    columns = matrices[0].shape[1]
    return torch.cat([matrix.view(model.kv_heads, -1, columns) for matrix in matrices], 1).view(-1, columns)


def whole_of(name: str, parts: list[Tensor], dimension: int | None, model: ModelConfig) -> Tensor:
    """The whole parameter of the parts of tensor-parallel ranks, which are split along `dimension`."""
    if dimension is None:
        return parts[0]
    if name.endswith(FC1) and model.activation == "swiglu":
        halves = [part.chunk(2) for part in parts]
        return torch.cat([half[i] for i in (0, 1) for half in halves])
    return torch.cat(parts, dimension)


def parts_of(name: str, whole: Tensor, dimension: int | None, tp: int, model: ModelConfig) -> list[Tensor]:
    """The inverse of `whole_of`."""
    if dimension is None:
        return [whole] * tp
    if name.endswith(FC1) and model.activation == "swiglu":
        gate, up = (half.chunk(tp) for half in whole.chunk(2))
        return [torch.cat(pair) for pair in zip(gate, up, strict=True)]
    return list(whole.chunk(tp, dimension))


def _by_group(whole: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
    """Queries, keys and values [groups, rows of a group, columns]: each group has its queries, its key, its value."""
    size, columns = model.head_size, whole.shape[1]
    queries = model.num_heads // model.kv_heads * size
    return whole.view(model.kv_heads, queries + 2 * size, columns).split([queries, size, size], 1)

"""What a parameter on this rank is of the whole model: layout-free name, its part, how its gradient is completed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.config.model import ModelConfig, padded_vocab_size
from pretrain.model.init import VOCABULARY_TABLES

WORD_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of this rank."""

    name: str
    """In the whole model: layers are counted over all stages, a tied head is the embedding."""
    shape: torch.Size
    """On this rank, vocabulary padding included."""
    split: int | None
    """Dimension that is cut over tensor-parallel ranks; None: all hold the whole."""
    tied: bool
    """Whether another stage holds a copy: their gradients are summed."""
    is_copy: bool
    """Whether it is the second of two tied copies: the global norm counts one."""
    summed_over_tp: bool
    """Whether each tensor-parallel rank has only a part of the gradient of a parameter that all hold whole."""


@dataclass(frozen=True)
class LogicalPart:
    """What a local parameter holds of a tensor as a checkpoint knows it."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    origin: tuple[int, ...]
    """Where this rank's part begins in it."""
    part_shape: tuple[int, ...]
    offset: int
    """Where the part begins in the flat row-major local parameter."""


def describe(
    name: str, parameter: nn.Parameter, *, first_layer: int, tied: bool, is_copy: bool, tp: int
) -> LocalParameter:
    """The record of parameter `name` of a chunk whose first layer is the model's layer `first_layer`."""
    whole_name = re.sub(r"(?<=^decoder\.layers\.)\d+", lambda match: str(first_layer + int(match.group())), name)
    if is_copy:
        whole_name = WORD_EMBEDDING
    is_split = tp > 1 and getattr(parameter, "tensor_model_parallel", False)
    split = getattr(parameter, "partition_dim", None) if is_split else None
    # A head's norm sees this rank's heads only (Megatron sums it by name); the others are marked where a part of the
    # sequence is all that a rank sees.
    partial = getattr(parameter, "sequence_parallel", False) or ".q_layernorm." in name or ".k_layernorm." in name
    return LocalParameter(whole_name, parameter.shape, split, tied, is_copy, summed_over_tp=partial and tp > 1)


def whole_shape(parameter: LocalParameter, tp: int) -> torch.Size:
    """Its shape in the whole model, vocabulary padding included."""
    shape = list(parameter.shape)
    if parameter.split is not None:
        shape[parameter.split] *= tp
    return torch.Size(shape)


def own_part(parameter: LocalParameter, whole: Tensor, *, model: ModelConfig, tp: int, tp_rank: int) -> Tensor:
    """This rank's part of the whole tensor; gate and up projections of SwiGLU are each cut by themselves."""
    if parameter.split is None:
        return whole
    if _is_gate_and_up(parameter.name, model):
        halves = whole.view(2, whole.shape[0] // 2, *whole.shape[1:])
        return halves.chunk(tp, 1)[tp_rank].reshape(parameter.shape)
    return whole.chunk(tp, parameter.split)[tp_rank]


def logical_parts(
    parameter: LocalParameter, *, model: ModelConfig, vocab_size: int, tp: int, tp_rank: int
) -> Iterator[LogicalPart]:
    """What a parameter holds, free of layout: no vocabulary padding, SwiGLU's two projections apart."""
    name, local, split = parameter.name, tuple(parameter.shape), parameter.split
    origin = [0] * len(local)
    if name.endswith(VOCABULARY_TABLES):
        first = tp_rank * local[0] if split is not None else 0
        rows = min(local[0], vocab_size - first)
        if rows > 0:
            shape, origin[0] = (vocab_size, *local[1:]), first
            yield LogicalPart(name, shape, tuple(origin), (rows, *local[1:]), 0)
    elif _is_gate_and_up(name, model):
        half = (local[0] // 2, *local[1:])
        shape = (half[0] * (tp if split is not None else 1), *half[1:])
        origin[0] = tp_rank * half[0] if split is not None else 0
        for i, part in enumerate(("gate", "up")):
            part_name = name.replace(".linear_fc1.", f".linear_fc1.{part}.")
            yield LogicalPart(part_name, shape, tuple(origin), half, i * torch.Size(half).numel())
    else:
        if split is not None:
            origin[split] = tp_rank * local[split]
        yield LogicalPart(name, tuple(whole_shape(parameter, tp)), tuple(origin), local, 0)


def padded_rows(model: ModelConfig, vocab_size: int, tp: int) -> int:
    """Rows of a vocabulary table: every tensor-parallel rank holds the same number."""
    return padded_vocab_size(vocab_size, model.vocab_multiple_of * tp)


def _is_gate_and_up(name: str, model: ModelConfig) -> bool:
    return model.activation == "swiglu" and ".linear_fc1." in name

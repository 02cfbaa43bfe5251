"""Describe a parameter of this rank: its name in the whole model, its part of a tensor, how its gradient is summed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pretrain.config.model import ModelConfig
from pretrain.model.expert_split import ExpertSplit
from pretrain.model.init import VOCABULARY_TABLES
from pretrain.model.rows import Rows

GATE_AND_UP = ("gate", "up")
WORD_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of this rank, as part of the whole model."""

    name: str
    """Name in the whole model: layers are counted over all stages, and a tied head is named as the embedding."""
    shape: torch.Size
    """Shape on this rank, including vocabulary padding."""
    split: int | None
    """Dimension that is split over tensor-parallel ranks; None: each rank holds the whole tensor."""
    tied: bool
    """Whether another stage holds a copy. The gradients of both are summed."""
    is_copy: bool
    """Whether it is the second of two tied copies. The global norm counts only the first."""
    summed_over_tp: bool
    """Whether each tensor-parallel rank computes only a part of the gradient, although each holds the whole tensor."""
    experts: ExpertSplit | None = None
    """The split of stacked experts, whose `split` says only that ranks hold different parts."""


@dataclass(frozen=True)
class LogicalPart:
    """The part of a checkpoint's tensor that a local parameter holds."""

    name: str
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    origin: tuple[int, ...]
    """Index in the tensor at which this rank's part starts."""
    part_shape: tuple[int, ...]
    offset: int
    """Index in the flat row-major local parameter at which the part starts."""


def describe(
    name: str, parameter: nn.Parameter, *, first_layer: int, tied: bool, is_copy: bool, tp: int
) -> LocalParameter:
    """Describe parameter `name` of a chunk whose first layer is the model's layer `first_layer`."""
    whole_name = name_in_model(name, first_layer)
    if is_copy:
        whole_name = WORD_EMBEDDING
    experts: ExpertSplit | None = getattr(parameter, "expert_split", None)
    if experts is not None:
        is_divided = experts.ep * experts.etp > 1
        return LocalParameter(
            whole_name, parameter.shape, 0 if is_divided else None, False, False, summed_over_tp=False, experts=experts
        )
    is_split = tp > 1 and getattr(parameter, "tensor_model_parallel", False)
    split = getattr(parameter, "partition_dim", None) if is_split else None
    # A norm of queries or keys gets only this rank's heads (Megatron sums its gradient by name too). The others are
    # marked if each rank gets only a part of the sequence.
    partial = getattr(parameter, "sequence_parallel", False) or ".q_layernorm." in name or ".k_layernorm." in name
    return LocalParameter(whole_name, parameter.shape, split, tied, is_copy, summed_over_tp=partial and tp > 1)


EXPERTS = "experts"
"""The name by which DeepSpeed knows the group of ranks that hold the same experts."""


def mark_expert(parameter: nn.Parameter, group: dist.ProcessGroup) -> None:
    """Let DeepSpeed reduce and partition the parameter over this group, instead of over data-parallel ranks.

    Below ZeRO-3, deepspeed 0.19.8 reads the first two marks; ZeRO-3 reads the third.
    """
    marks: Any = parameter
    marks.allreduce, marks.group_name, marks.ds_zero_partition_process_group = False, EXPERTS, group


def name_in_model(name: str, first_layer: int) -> str:
    """The name in the whole model of what is `name` in a chunk."""
    return re.sub(r"(?<=^decoder\.layers\.)\d+", lambda match: str(first_layer + int(match.group())), name)


def whole_shape(parameter: LocalParameter, tp: int) -> torch.Size:
    """Its shape in the whole model, including vocabulary padding."""
    if parameter.experts is not None:
        return parameter.experts.whole(parameter.shape)
    shape = list(parameter.shape)
    if parameter.split is not None:
        shape[parameter.split] *= tp
    return torch.Size(shape)


def own_rows(parameter: LocalParameter, *, model: ModelConfig, tp: int, tp_rank: int) -> Rows:
    """This rank's part of the whole tensor. SwiGLU's gate and up projections are split separately."""
    if parameter.experts is not None:
        return parameter.experts.rows(parameter.shape)
    whole = whole_shape(parameter, tp)
    if parameter.split is None:
        return Rows(0, 1, whole.numel(), 0)
    matrices = 2 if _is_gate_and_up(parameter.name, model) else 1
    # Splitting a dimension leaves one piece for each index of the dimensions before it.
    count = matrices * whole[: parameter.split].numel()
    length = parameter.shape.numel() // count
    return Rows(tp_rank * length, count, length, tp * length)


def logical_parts(
    parameter: LocalParameter, *, model: ModelConfig, vocab_size: int, tp: int, tp_rank: int
) -> Iterator[LogicalPart]:
    """The parts of logical tensors in a parameter: without vocabulary padding, and SwiGLU's projections separately."""
    name, local, split = parameter.name, tuple(parameter.shape), parameter.split
    origin = [0] * len(local)
    if parameter.experts is not None:
        whole = list(whole_shape(parameter, tp))
        whole[parameter.experts.dim] //= parameter.experts.matrices
        for matrix, place, part_shape, offset in parameter.experts.boxes(local):
            part_name = name
            if parameter.experts.matrices > 1:
                part_name = name.replace(".linear_fc1.", f".linear_fc1.{GATE_AND_UP[matrix]}.")
            yield LogicalPart(part_name, tuple(whole), place, part_shape, offset)
    elif name.endswith(VOCABULARY_TABLES):
        first = tp_rank * local[0] if split is not None else 0
        rows = min(local[0], vocab_size - first)
        if rows > 0:
            shape, origin[0] = (vocab_size, *local[1:]), first
            yield LogicalPart(name, shape, tuple(origin), (rows, *local[1:]), 0)
    elif _is_gate_and_up(name, model):
        half = (local[0] // 2, *local[1:])
        shape = (half[0] * (tp if split is not None else 1), *half[1:])
        origin[0] = tp_rank * half[0] if split is not None else 0
        for i, part in enumerate(GATE_AND_UP):
            part_name = name.replace(".linear_fc1.", f".linear_fc1.{part}.")
            yield LogicalPart(part_name, shape, tuple(origin), half, i * torch.Size(half).numel())
    else:
        if split is not None:
            origin[split] = tp_rank * local[split]
        yield LogicalPart(name, tuple(whole_shape(parameter, tp)), tuple(origin), local, 0)


def _is_gate_and_up(name: str, model: ModelConfig) -> bool:
    return model.activation == "swiglu" and ".linear_fc1." in name

"""Where each ZeRO stage keeps a rank's share of the optimizer state, as flat pieces of named parameters.

The inner fields named here are those of deepspeed 0.19.8.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.interface import StateShard
from pretrain.engine.nvme_offload import in_memory, on_disk
from pretrain.engine.replicated import masters_and_parameters
from pretrain.model.parameters import LocalParameter, LogicalPart

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class FlatPiece:
    """Elements `start` and on of a flat parameter: the state kinds `weight`, `exp_avg` and `exp_avg_sq`."""

    parameter: nn.Parameter
    start: int
    states: Mapping[str, Tensor]
    """One-dimensional views of equal length."""


def copies_of(local: LocalParameter, groups: ProcessGroups, *, replicated: bool) -> tuple[int, int]:
    """Which copy of a parameter's share this rank has, of how many; `replicated`: over data-parallel ranks too."""
    layout = groups.layout
    copy, copies = 0, 1
    for held_alike, rank, size in (
        (local.split is None, groups.tp_rank, layout.tp),
        (local.tied, int(local.is_copy), 2),
        (replicated, groups.dp_rank, layout.dp),
    ):
        if held_alike:
            copy, copies = copy * size + rank, copies * size
    return copy, copies


def logical_shards(
    piece: FlatPiece, parts: Iterable[LogicalPart], copy: int = 0, copies: int = 1
) -> Iterator[StateShard]:
    """The piece cut at the borders of the logical tensors in its parameter; vocabulary padding falls away."""
    end = piece.start + piece.states["weight"].numel()
    for logical in parts:
        first = max(piece.start, logical.offset)
        last = min(end, logical.offset + torch.Size(logical.part_shape).numel())
        if first < last:
            for kind, data in piece.states.items():
                held = data[first - piece.start : last - piece.start]
                where = first - logical.offset
                name = f"{kind}/{logical.name}"
                yield StateShard(name, logical.shape, logical.origin, logical.part_shape, where, held, copy, copies)


def flat_pieces(
    optimizer: Any,
    stage: int,
    groups: ProcessGroups,
    moments: tuple[str, ...],
) -> Iterator[FlatPiece]:
    """Every piece that this rank holds, with these moments; makes them where no step was taken yet."""
    adamw = basic_optimizer(optimizer)
    if stage == 0:
        places = _whole(optimizer)
    else:
        places = cut_by_group(optimizer, groups) if stage < 3 else cut_by_parameter(optimizer, groups)
    for _, of_master in itertools.groupby(places, key=lambda place: id(place.master)):
        first, *others = of_master
        with in_memory(optimizer, first.master) if moments and not adamw.state[first.master] else nullcontext():
            whole = _states(adamw, first.master, moments)
        states = {kind: on_disk(optimizer, first.master, tensor).detach() for kind, tensor in whole.items()}
        for place in (first, *others):
            held = {kind: _flat(tensor, place) for kind, tensor in states.items()}
            yield FlatPiece(place.parameter, place.start, held)


def basic_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's AdamW, which DeepSpeed wraps in all but the plainest case."""
    basic: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return basic


@dataclass(frozen=True)
class Place:
    """Elements `first` to `last` of the master buffer are elements `start` and on of the parameter."""

    parameter: nn.Parameter
    master: Tensor
    first: int
    last: int
    start: int


def _flat(tensor: Tensor, place: Place) -> Tensor:
    return tensor.view(-1)[place.first : place.last]


def _whole(optimizer: Any) -> Iterator[Place]:
    """Stage 0: whole tensors on every rank."""
    for master, parameter in masters_and_parameters(optimizer):
        yield Place(parameter, master, 0, master.numel(), 0)


def cut_by_group(optimizer: Any, groups: ProcessGroups) -> Iterator[Place]:
    """Stages 1 and 2: each parameter group is one flat buffer, cut in dp equal parts."""
    for i, master in enumerate(optimizer.single_partition_of_fp32_groups):
        begin = groups.dp_rank * master.numel()
        offsets = optimizer.round_robin_bit16_offsets[i]
        for parameter, offset in zip(optimizer.round_robin_bit16_groups[i], offsets, strict=True):
            first, last = max(begin, offset), min(begin + master.numel(), offset + parameter.numel())
            if first < last:
                yield Place(parameter, master, first - begin, last - begin, first - offset)


def cut_by_parameter(optimizer: Any, groups: ProcessGroups) -> Iterator[Place]:
    """Stage 3: each parameter is cut in dp parts of ceil(numel / dp); a sub-group's parts lie in one buffer."""
    for i, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        position = 0
        for parameter in optimizer.fp16_groups[i]:
            size = parameter.partition_numel()
            start = groups.dp_rank * size
            real = min(size, parameter.ds_numel - start)  # the last part is padded
            if real > 0:
                yield Place(parameter, master, position, position + real, start)
            position += size


def _states(adamw: torch.optim.Optimizer, master: Tensor, moments: tuple[str, ...]) -> dict[str, Tensor]:
    state = adamw.state[master] if moments else {}
    if moments and not state:
        # As AdamW itself does at its first step: the count lies on the parameter's device where the update is fused.
        place = master.device if adamw.defaults["fused"] else "cpu"
        state["step"] = torch.zeros((), dtype=torch.float32, device=place)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(master, memory_format=torch.preserve_format)
    return {"weight": master, **{moment: state[moment] for moment in moments}}


def adam_steps(adamw: torch.optim.Optimizer) -> float:
    """Updates that Adam has made: its bias correction depends on them."""
    return max((float(state["step"]) for state in adamw.state.values() if "step" in state), default=0.0)


def set_adam_steps(adamw: torch.optim.Optimizer, steps: float) -> None:
    for state in adamw.state.values():
        state["step"].fill_(steps)

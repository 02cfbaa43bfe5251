"""Gradients between their reduction over data-parallel ranks and the update: completed, and measured by one norm.

DeepSpeed knows nothing of parameters that tensor-parallel ranks or pipeline stages hold together, and takes its norm
group by group with a collective each, which hangs where stages differ in their groups. So the one place that every ZeRO
stage passes after the reduction and before the update, `optimizer.step`, begins with what is here, and DeepSpeed is
handed the norm. The inner fields named here are those of deepspeed 0.19.8.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.config.engine import LossScaleConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.nvme_offload import is_on_disk
from pretrain.engine.shards import cut_by_group, cut_by_parameter
from pretrain.model.parameters import LocalParameter

Piece = tuple[nn.Parameter, Tensor]
"""A parameter, and this rank's share of its reduced gradient: a flat view, writing into it changes the update."""


def forget_gradients(optimizer: Any, stage: int) -> None:
    """Before a step: DeepSpeed overwrites the last step's sums in the first micro-batch only.

    The chunks of an interleaved stage that come later would add to them.
    """
    if stage == 3:
        optimizer.grad_partitions_flat_buffer.zero_()
    elif stage == 2 and _is_offloaded(optimizer):
        for total in optimizer.accumulated_grads_in_cpu.values():
            total.zero_()


def complete(pieces: Iterable[Piece], local: Mapping[nn.Parameter, LocalParameter], groups: ProcessGroups) -> None:
    """Sum what tensor-parallel ranks or the two ends of the pipeline each have a part of."""
    pieces = list(pieces)
    partial = [piece for parameter, piece in pieces if local[parameter].summed_over_tp]
    if partial:
        _sum_together(partial, groups.tensor_parallel, groups.device)
    tied = [piece for parameter, piece in pieces if local[parameter].tied]
    if tied:
        assert groups.embedding is not None
        _sum_together(tied, groups.embedding, groups.device)


def global_norm(
    pieces: Iterable[Piece], local: Mapping[nn.Parameter, LocalParameter], groups: ProcessGroups, *, replicated: bool
) -> float:
    """2-norm of the whole model's gradient, every element counted once; `replicated`: over data-parallel ranks too."""
    square = torch.zeros((), dtype=torch.float64, device=groups.device)
    if not (replicated and groups.dp_rank):
        counted = [
            piece
            for parameter, piece in pieces
            if not local[parameter].is_copy and (local[parameter].split is not None or groups.tp_rank == 0)
        ]
        if counted:
            # In one call that reads each gradient once; a norm of each alone would make an fp64 copy of it on a GPU.
            norms = torch._foreach_norm(counted, 2, torch.float64)
            square = torch.stack(norms).square().sum()
    if groups.world.size() > 1:
        square = square.to(groups.device)
        dist.all_reduce(square, group=groups.world)
    # In fp32, so that the order of summation does not show in the last bits of what is clipped by it.
    norm = square.sqrt().float().item()
    return norm if math.isfinite(norm) else math.inf


def pieces_of(optimizer: Any, stage: int, parameters: Iterable[nn.Parameter], groups: ProcessGroups) -> Iterator[Piece]:
    """This rank's share of every gradient, wherever this ZeRO stage keeps it."""
    if stage == 0:
        for parameter in parameters:
            if parameter.grad is not None:
                yield parameter, parameter.grad
    elif stage == 3 and is_on_disk(optimizer):
        # The sums in memory: what goes to the disk comes of them, when the last micro-batch is through.
        position = 0
        for parameter in (parameter for group in optimizer.fp16_groups for parameter in group):
            size = parameter.partition_numel()
            real = min(size, parameter.ds_numel - groups.dp_rank * size)
            if real > 0:  # the last share is padded
                yield parameter, optimizer.grad_partitions_flat_buffer[position : position + real]
            position += size
    elif _is_offloaded(optimizer):
        places = cut_by_group(optimizer, groups) if stage < 3 else cut_by_parameter(optimizer, groups)
        for place in places:
            if place.master.grad is not None:
                yield place.parameter, place.master.grad.view(-1)[place.first : place.last]
    elif stage == 3:
        for i, group in enumerate(optimizer.fp16_groups):
            for parameter, piece in zip(group, optimizer.averaged_gradients[i], strict=True):
                real = parameter.ds_numel - groups.dp_rank * parameter.partition_numel()
                if real > 0:  # the last share is padded
                    yield parameter, piece.view(-1)[:real]
    else:
        yield from _shares_of_flat_groups(optimizer, groups)


def _shares_of_flat_groups(optimizer: Any, groups: ProcessGroups) -> Iterator[Piece]:
    """ZeRO 1 and 2: a list of gradients for each flat group, with padding between and after, found by position."""
    at: dict[tuple[int, int], Tensor] = {}
    for i, master in enumerate(optimizer.single_partition_of_fp32_groups):
        position = 0
        for share in optimizer.averaged_gradients[i]:
            at[id(master), position] = share
            position += share.numel()
    for place in cut_by_group(optimizer, groups):
        share = at[id(place.master), place.first]
        assert share.numel() == place.last - place.first
        yield place.parameter, share


def hand_norm_to_deepspeed(optimizer: Any, norm_of_step: Callable[[], float]) -> None:
    """ZeRO 1 to 3: DeepSpeed combines the norms of its groups; the first one asked for in a step is now the whole.

    Whether anything overflowed is told by it too: DeepSpeed would go through all gradients again, and ask the device.
    """
    asked = 0

    def norm(*_: Any, **__: Any) -> Tensor:
        nonlocal asked
        asked += 1
        return torch.tensor(norm_of_step() if asked == 1 else 0.0)

    combine = optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked = 0
        return combine(*args, **kwargs)

    optimizer.step = step
    name = "complete_grad_norm_calculation_for_cpu_offload" if _is_offloaded(optimizer) else "get_grad_norm_direct"
    assert hasattr(optimizer, name) and hasattr(optimizer, "has_overflow")
    setattr(optimizer, name, norm)
    optimizer.has_overflow = lambda *_, **__: not math.isfinite(norm_of_step())


def begin_loss_scale(optimizer: Any, zero: int, config: LossScaleConfig) -> None:
    """In fp16: one rule for the dynamic loss scale at every stage. That of DeepSpeed's stage 0 has no hysteresis, and
    that of the others ends the run with an overflow at the least scale (0.19.8)."""
    if zero == 0:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        optimizer.loss_scaler = DynamicLossScaler(
            init_scale=config.initial,
            scale_window=config.window,
            min_scale=config.minimum,
            delayed_shift=config.hysteresis,
            consecutive_hysteresis=False,
        )
        optimizer._update_scale = optimizer.loss_scaler.update_scale
    optimizer.loss_scaler.raise_error_at_min_scale = False


def change_scale_after_update(optimizer: Any) -> None:
    """ZeRO 1 to 3: gradients are divided by the loss scale that they were computed with.

    DeepSpeed changes the scale first; where it grew and nothing is clipped, gradients would have half their size.
    """
    update, change = optimizer.step, optimizer._update_scale
    optimizer._update_scale = lambda *_: None

    def step(*args: Any, **kwargs: Any) -> Any:
        result = update(*args, **kwargs)
        change(optimizer.overflow)
        return result

    optimizer.step = step


def _is_offloaded(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False))


def _sum_together(pieces: list[Tensor], group: dist.ProcessGroup, device: torch.device) -> None:
    """All-reduce as one flat fp32 tensor on `device`: the pieces are many and small."""
    flat = torch.cat([piece.reshape(-1).float() for piece in pieces]).to(device)
    dist.all_reduce(flat, group=group)
    for piece, summed in zip(pieces, flat.split([piece.numel() for piece in pieces]), strict=True):
        piece.copy_(summed.view_as(piece))

"""Complete and measure gradients between their reduction over data-parallel ranks and the update.

DeepSpeed does not know parameters that tensor-parallel ranks or pipeline stages share. It also takes the norm of each
parameter group with its own collective, which deadlocks if stages have different groups. So each ZeRO family starts its
step with these two functions, and DeepSpeed clips by our norm (vendor_patches.py).
"""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.optimizer.interface import GradientShard
from pretrain.model.parameters import LocalParameter


def copies_of(local: LocalParameter, groups: ProcessGroups, *, replicated: bool) -> tuple[int, int]:
    """Which copy of a parameter's state this rank has, and how many copies there are.

    `replicated`: whether all ranks that hold the parameter hold the same state, rather than a part of it each.
    """
    layout = groups.layout
    if local.experts is not None and layout.has_experts_apart:
        return (groups.expert_data.rank(), layout.edp) if replicated else (0, 1)
    copy, copies = 0, 1
    for is_shared, rank, size in (
        (local.split is None, groups.tp_rank, layout.tp),
        (local.tied, int(local.is_copy), 2),
        (replicated, groups.dp_rank, layout.dp),
    ):
        if is_shared:
            copy, copies = copy * size + rank, copies * size
    return copy, copies


def reduce_partial_gradients(
    shards: Iterable[GradientShard], local: Mapping[nn.Parameter, LocalParameter], groups: ProcessGroups
) -> None:
    """Sum gradients of which tensor-parallel ranks, or the two ends of the pipeline, each computed a part."""
    shards = list(shards)
    partial = [shard for parameter, shard in shards if local[parameter].summed_over_tp]
    if partial:
        _all_reduce_flat(partial, groups.tensor_parallel, groups.device)
    tied = [shard for parameter, shard in shards if local[parameter].tied]
    if tied:
        assert groups.embedding is not None
        _all_reduce_flat(tied, groups.embedding, groups.device)


def global_norm(
    shards: Iterable[GradientShard],
    local: Mapping[nn.Parameter, LocalParameter],
    groups: ProcessGroups,
    *,
    replicated: bool,
) -> float:
    """2-norm of the whole model's gradient, counting every element once.

    `replicated`: whether all data-parallel ranks hold the same gradients.
    """
    square = torch.zeros((), dtype=torch.float64, device=groups.device)
    counted = [
        shard for parameter, shard in shards if copies_of(local[parameter], groups, replicated=replicated)[0] == 0
    ]
    if counted:
        # One call reads each gradient once. A separate norm of each would make an fp64 copy of it on a GPU.
        norms = torch._foreach_norm(counted, 2, torch.float64)
        square = torch.stack(norms).square().sum()
    if groups.world.size() > 1:
        square = square.to(groups.device)
        dist.all_reduce(square, group=groups.world)
    # Rounded to fp32, so that the order of summation does not change the last bits of clipped gradients.
    norm = square.sqrt().float().item()
    return norm if math.isfinite(norm) else math.inf


def _all_reduce_flat(shards: list[Tensor], group: dist.ProcessGroup, device: torch.device) -> None:
    """All-reduce as one flat fp32 tensor on `device`: the shards are many and small."""
    flat = torch.cat([shard.reshape(-1).float() for shard in shards]).to(device)
    dist.all_reduce(flat, group=group)
    for shard, summed in zip(shards, flat.split([shard.numel() for shard in shards]), strict=True):
        shard.copy_(summed.view_as(shard))

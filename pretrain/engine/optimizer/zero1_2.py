"""ZeRO-1 and 2: each parameter group is one flat buffer, and each data-parallel rank updates an equal part of it.

The inner fields named here are those of deepspeed 0.19.8.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.optimizer.base import PartitionedOptimizer
from pretrain.engine.optimizer.interface import GradientShard, OptimizerSettings
from pretrain.engine.optimizer.partition import ParameterRange, equal_parts_of_groups
from pretrain.engine.vendor_patches import prepare_each_backward
from pretrain.model.gpt import Stage


class Zero12(PartitionedOptimizer):
    """Sharded optimizer states, and at ZeRO-2 sharded gradients."""

    def __init__(self, engine: Any, stage: Stage, groups: ProcessGroups, settings: OptimizerSettings) -> None:
        super().__init__(engine, stage, groups, settings)
        prepare_each_backward(engine, reduce_per_step=settings.reduce_per_step)

    def gradient_shards(self) -> Iterator[GradientShard]:
        """DeepSpeed keeps a list of gradients per group, with padding between and after them: found by position."""
        at: dict[tuple[int, int], Tensor] = {}
        for i, master in enumerate(self.optimizer.single_partition_of_fp32_groups):
            position = 0
            for gradient in self.optimizer.averaged_gradients[i]:
                at[id(master), position] = gradient
                position += gradient.numel()
        for item in self.partition:
            gradient = at[id(item.master), item.first]
            assert gradient.numel() == item.last - item.first
            yield item.parameter, gradient

    def step(self, *args: Any, **kwargs: Any) -> None:
        self.reduce_gradients()
        self._deepspeed_step(*args, **kwargs)  # clips by our norm, updates this rank's part, and gathers all parts
        self._update_loss_scale(self.optimizer.overflow)

    @torch.no_grad()
    def refresh_parameters(self) -> None:
        for i, master in enumerate(self.optimizer.single_partition_of_fp32_groups):
            parts = self.optimizer.parallel_partitioned_bit16_groups[i]
            group = self.optimizer.real_dp_process_group[i]
            parts[group.rank()].copy_(master)
            dist.all_gather(list(parts), parts[group.rank()], group=group)

    def _partition(self) -> Iterable[ParameterRange]:
        return equal_parts_of_groups(self.optimizer)

    def _parameter_buffers(self) -> Iterable[Tensor]:
        buffers: list[Tensor] = self.optimizer.bit16_groups_flat
        return buffers

    def _master_buffers(self) -> Iterable[Tensor]:
        masters: list[Tensor] = self.optimizer.single_partition_of_fp32_groups
        return masters

    def _gradient_buffers(self) -> Iterable[Tensor]:
        groups = self.optimizer.averaged_gradients.values()
        return (gradient for gradients in groups for gradient in gradients or ())

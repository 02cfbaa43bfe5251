"""ZeRO-3: each parameter is divided equally over data-parallel ranks, and gathered where a module uses it.

The inner fields named here are those of deepspeed 0.19.8.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.nvme_offload import write_parameters
from pretrain.engine.optimizer.base import PartitionedOptimizer
from pretrain.engine.optimizer.interface import GradientShard, OptimizerSettings
from pretrain.engine.optimizer.partition import ParameterRange, equal_parts_of_parameters
from pretrain.engine.param_gather import BackwardCounts, gather_until_step
from pretrain.engine.vendor_patches import fetch_without_traces, prepare_each_backward
from pretrain.model.gpt import Stage


class Zero3(PartitionedOptimizer):
    """Sharded parameters, gradients and optimizer states."""

    partitions_parameters: ClassVar[bool] = True

    def __init__(self, engine: Any, stage: Stage, groups: ProcessGroups, settings: OptimizerSettings) -> None:
        super().__init__(engine, stage, groups, settings)
        self._counts = BackwardCounts()
        sizes = [sum(parameter.partition_numel() for parameter in group) for group in self.optimizer.fp16_groups]
        masters = self.optimizer.fp32_partitioned_groups_flat
        self._first_gradient = dict(zip(map(id, masters), itertools.accumulate(sizes, initial=0), strict=False))
        fetch_without_traces(self.optimizer)
        prepare_each_backward(engine, reduce_per_step=settings.reduce_per_step, also=self._counts.restore)

    def forward(self, chunk: int, *args: Any, **kwargs: Any) -> Tensor:
        output = super().forward(chunk, *args, **kwargs)
        self._counts.remember(self.stage.chunks[chunk])
        return output

    def gather_until_step(self) -> None:
        if self.settings.gather_per_step:
            gather_until_step(self.stage.local)

    def release_gathered(self) -> None:
        """Some parameters stay gathered until the next step frees them."""
        self.optimizer.empty_partition_cache()

    def zero_gradients(self) -> None:
        """DeepSpeed overwrites the last step's sums in the first micro-batch only.

        The later chunks of an interleaved stage would add to them.
        """
        self.optimizer.grad_partitions_flat_buffer.zero_()

    def gradient_shards(self) -> Iterator[GradientShard]:
        """One buffer holds this rank's part of all gradients, sub-group after sub-group."""
        for item in self.partition:
            begin = self._first_gradient[id(item.master)]
            yield (
                item.parameter,
                self.optimizer.grad_partitions_flat_buffer[begin + item.first : begin + item.last],
            )

    def reduce_gradients(self) -> None:
        layout = self.groups.layout
        if layout.has_experts_apart:
            # DeepSpeed averages over the ranks that hold a parameter. The loss is the mean over data-parallel ranks.
            experts = [shard for parameter, shard in self.gradient_shards() if self.stage.local[parameter].experts]
            if experts:
                torch._foreach_mul_(experts, layout.edp / layout.dp)
        super().reduce_gradients()

    def step(self, *args: Any, **kwargs: Any) -> None:
        self.reduce_gradients()
        self._deepspeed_step(*args, **kwargs)  # clips by our norm, updates sub-group by sub-group, frees parameters
        self._update_loss_scale(self.optimizer.overflow)

    @torch.no_grad()
    def refresh_parameters(self) -> None:
        for i, master in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            parameters = self.optimizer.fp16_partitioned_groups_flat[i]
            if parameters is None:
                write_parameters(self.optimizer, i)
            else:
                parameters.copy_(self._stored(master, master))

    def _stored(self, _master: Tensor, state: Tensor) -> Tensor:
        """The tensor that holds the state between the steps; writing into it changes the state."""
        return state

    def _partition(self) -> Iterable[ParameterRange]:
        return equal_parts_of_parameters(self.optimizer)

    def _parameter_buffers(self) -> Iterable[Tensor]:
        return (parameter.ds_tensor for parameter in self.stage.local)  # type: ignore[attr-defined]

    def _master_buffers(self) -> Iterable[Tensor]:
        masters: list[Tensor] = self.optimizer.fp32_partitioned_groups_flat
        return masters

    def _gradient_buffers(self) -> Iterable[Tensor]:
        return [self.optimizer.grad_partitions_flat_buffer]

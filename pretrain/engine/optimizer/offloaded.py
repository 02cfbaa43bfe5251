"""ZeRO-1 to 3 with optimizer states in the host's memory or, at ZeRO-3, on a disk (ZeRO-Infinity).

With states in the host's memory, `step` is inherited: DeepSpeed's own step updates them on the host and copies the
parameters to the device. Only the gradients are read differently. The private fields used here are those of
deepspeed 0.19.8.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

from torch import Tensor

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.nvme_offload import in_memory, on_disk
from pretrain.engine.optimizer.adam import adam_state
from pretrain.engine.optimizer.base import PartitionedOptimizer
from pretrain.engine.optimizer.interface import GradientShard, OptimizerSettings
from pretrain.engine.optimizer.zero1_2 import Zero12
from pretrain.engine.optimizer.zero3 import Zero3
from pretrain.engine.vendor_patches import replace_finalize
from pretrain.model.gpt import Stage

HOST_NORM = "complete_grad_norm_calculation_for_cpu_offload"


class OffloadedZero12(Zero12):
    """ZeRO-1 and 2 whose update runs in the host's memory."""

    norm_method: ClassVar[str] = HOST_NORM

    def zero_gradients(self) -> None:
        """DeepSpeed overwrites the last step's sums in the first micro-batch only.

        The later chunks of an interleaved stage would add to them.
        """
        for total in self.optimizer.accumulated_grads_in_cpu.values():
            total.zero_()

    def gradient_shards(self) -> Iterator[GradientShard]:
        return _gradients_of_masters(self)


class OffloadedZero3(Zero3):
    """ZeRO-3 whose update runs in the host's memory."""

    norm_method: ClassVar[str] = HOST_NORM

    def gradient_shards(self) -> Iterator[GradientShard]:
        return _gradients_of_masters(self)


class NvmeZero3(Zero3):
    """ZeRO-3 whose optimizer states are read from a disk for the update, sub-group by sub-group.

    The gradients go to the disk before the update begins, so they are completed and measured earlier than elsewhere:
    in `finalize`, from the sums in memory.
    """

    norm_method: ClassVar[str] = HOST_NORM

    def __init__(self, engine: Any, stage: Stage, groups: ProcessGroups, settings: OptimizerSettings) -> None:
        super().__init__(engine, stage, groups, settings)
        self._deepspeed_finalize = replace_finalize(self.optimizer, self.finalize)

    def finalize(self, *args: Any, **kwargs: Any) -> None:
        """DeepSpeed's engine calls it after the last backward pass, before `step`."""
        self.reduce_gradients()
        self._deepspeed_finalize(*args, **kwargs)  # writes the gradients to the disk

    def step(self, *args: Any, **kwargs: Any) -> None:
        self._deepspeed_step(*args, **kwargs)
        self._update_loss_scale(self.optimizer.overflow)

    def _master_state(self, master: Tensor, moments: tuple[str, ...]) -> dict[str, Tensor]:
        with in_memory(self.optimizer, master) if moments and not self.adamw.state[master] else nullcontext():
            state = adam_state(self.adamw, master, moments)
        return {kind: self._stored(master, tensor) for kind, tensor in state.items()}

    def _stored(self, master: Tensor, state: Tensor) -> Tensor:
        return on_disk(self.optimizer, master, state)


def _gradients_of_masters(optimizer: PartitionedOptimizer) -> Iterator[GradientShard]:
    """DeepSpeed copies each finished gradient to the host, into the gradient of its master weight."""
    for item in optimizer.partition:
        if item.master.grad is not None:
            yield item.parameter, item.of(item.master.grad)

"""ZeRO-0: every data-parallel rank updates all parameters of its stage, in a constant number of operations.

In 16 bits DeepSpeed keeps the fp32 master weights and the loss scale. Its update is not used: it synchronizes with the
device for every gradient, computes the norm of the weights, and scales and copies tensor by tensor. If the loss scale
has just grown, it also divides by the new scale what was multiplied by the old one.
The inner fields named here are those of deepspeed 0.19.8.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.optimizer.base import DeepSpeedOptimizer
from pretrain.engine.optimizer.interface import GradientShard, OptimizerSettings
from pretrain.engine.optimizer.partition import ParameterRange, whole_parameters
from pretrain.engine.vendor_patches import replace_loss_scaler, replace_step
from pretrain.model.gpt import Stage


class Zero0(DeepSpeedOptimizer):
    """Replicated parameters, gradients and optimizer states."""

    replicated: ClassVar[bool] = True
    deepspeed_clips: ClassVar[bool] = False  # it would count a tied embedding twice

    def __init__(self, engine: Any, stage: Stage, groups: ProcessGroups, settings: OptimizerSettings) -> None:
        super().__init__(engine, stage, groups, settings)
        if groups.layout.dp == 1 and not groups.layout.has_experts_apart:
            # There is nothing to sum, and DeepSpeed would copy all gradients into a flat tensor and back.
            engine.enable_backward_allreduce = False
        self._adam_step = self.adamw.step
        replace_step(self.optimizer, self.step)

    def forward(self, chunk: int, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the stage: at ZeRO-0 DeepSpeed has no hooks, and rejects a backward pass that it did not start."""
        output: Tensor = self.stage(chunk, *args, **kwargs)
        return output

    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss * self.loss_scale

    def gradient_shards(self) -> Iterator[GradientShard]:
        for parameter in self.stage.local:
            if parameter.grad is not None:
                yield parameter, parameter.grad

    @torch.no_grad()
    def step(self, *_: Any, **__: Any) -> None:
        self.reduce_gradients()
        norm = self.grad_norm / self.loss_scale
        self.optimizer.overflow = not math.isfinite(norm)  # DeepSpeed's engine reads it: the update is skipped
        if not self.optimizer.overflow:
            self._update(norm)
        if self._has_masters:
            self.optimizer._update_scale(self.optimizer.overflow)

    def _update(self, norm: float) -> None:
        """`norm`: the norm of the unscaled gradients."""
        updated = [pair for pair in self._masters_and_parameters() if pair[1].grad is not None]
        gradients = [parameter.grad.float() for _, parameter in updated]  # type: ignore[union-attr]
        clip = self.settings.clip_grad_norm
        factor = (clip / (norm + 1e-6) if 0 < clip < norm else 1.0) / self.loss_scale
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        for (master, _), gradient in zip(updated, gradients, strict=True):
            master.grad = gradient
        self._adam_step()
        if self._has_masters:
            for master, _ in updated:
                master.grad = None
            self.refresh_parameters()

    @torch.no_grad()
    def refresh_parameters(self) -> None:
        if self._has_masters:
            masters, parameters = zip(*self._masters_and_parameters(), strict=True)
            torch._foreach_copy_(parameters, masters)

    @property
    def _has_masters(self) -> bool:
        """Whether there are separate fp32 master weights: not if the parameters are fp32."""
        return hasattr(self.optimizer, "fp32_groups")

    def _masters_and_parameters(self) -> list[tuple[Tensor, nn.Parameter]]:
        if not self._has_masters:
            return [(parameter, parameter) for group in self.param_groups for parameter in group["params"]]
        masters = itertools.chain(*self.optimizer.fp32_groups)
        return list(zip(masters, itertools.chain(*self.optimizer.fp16_groups), strict=True))

    def _partition(self) -> Iterable[ParameterRange]:
        return whole_parameters(self._masters_and_parameters())

    def _init_loss_scale(self) -> None:
        replace_loss_scaler(self.optimizer, self.settings.loss_scale)
        super()._init_loss_scale()

    def _parameter_buffers(self) -> Iterable[Tensor]:
        return self.stage.local

    def _master_buffers(self) -> Iterable[Tensor]:
        return itertools.chain(*self.optimizer.fp32_groups) if self._has_masters else ()

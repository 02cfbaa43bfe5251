"""The common part of the ZeRO families: counters, loss scale, state for checkpoints, and the norm."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.optimizer.adam import (
    adam_state,
    adam_steps,
    set_adam_steps,
    torch_optimizer,
)
from pretrain.engine.optimizer.gradients import global_norm, reduce_partial_gradients
from pretrain.engine.optimizer.interface import GradientShard, OptimizerMemory, OptimizerSettings, StateRange
from pretrain.engine.optimizer.partition import ParameterRange, Partition
from pretrain.engine.vendor_patches import NormOverride, never_fail_at_min_scale, postpone_scale_update, replace_step
from pretrain.model.gpt import Stage

SCALER_COUNTERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedOptimizer(ABC):
    """A `ShardedOptimizer` over the optimizer of a DeepSpeed engine."""

    replicated: ClassVar[bool] = False
    deepspeed_clips: ClassVar[bool] = True
    """Whether DeepSpeed clips the gradients, by our norm."""
    partitions_parameters: ClassVar[bool] = False
    """Whether each rank keeps only its own part of the parameters between their uses."""

    def __init__(self, engine: Any, stage: Stage, groups: ProcessGroups, settings: OptimizerSettings) -> None:
        self.engine, self.optimizer, self.adamw = engine, engine.optimizer, torch_optimizer(engine.optimizer)
        self.stage, self.groups, self.settings = stage, groups, settings
        self.grad_norm = math.nan
        self.partition: Partition = tuple(self._partition())
        set_adam_steps(self.adamw, 0)
        if settings.precision == "fp16":
            self._init_loss_scale()

    @abstractmethod
    def _partition(self) -> Iterable[ParameterRange]: ...

    @abstractmethod
    def gradient_shards(self) -> Iterator[GradientShard]: ...

    @abstractmethod
    def step(self, *args: Any, **kwargs: Any) -> None: ...

    @abstractmethod
    def refresh_parameters(self) -> None: ...

    def forward(self, chunk: int, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.engine(chunk, *args, **kwargs)
        return output

    def gather_until_step(self) -> None:  # noqa: B027  # a family may have nothing to do
        """Nothing to gather: the parameters are whole."""

    def release_gathered(self) -> None:  # noqa: B027  # a family may have nothing to do
        """Nothing to free: the parameters are whole."""

    def scale_loss(self, loss: Tensor) -> Tensor:
        scaled: Tensor = self.engine.scale(loss)
        return scaled

    def reduction(self) -> AbstractContextManager[Any]:
        return self.engine.coalesce_grad_reduction() if self.settings.reduce_per_step else nullcontext()

    def zero_gradients(self) -> None:  # noqa: B027  # a family may have nothing to do
        """DeepSpeed clears gradients itself after each update."""

    def reduce_gradients(self) -> None:
        shards = list(self.gradient_shards())
        reduce_partial_gradients(shards, self.stage.local, self.groups)
        self.grad_norm = global_norm(shards, self.stage.local, self.groups, replicated=self.replicated)

    @property
    def loss_scale(self) -> float:
        return float(self.optimizer.loss_scaler.cur_scale) if self.settings.precision == "fp16" else 1.0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def state(self, moments: tuple[str, ...]) -> Iterator[StateRange]:
        for _, ranges in itertools.groupby(self.partition, key=lambda item: id(item.master)):
            first, *others = ranges
            states = {kind: tensor.detach() for kind, tensor in self._master_state(first.master, moments).items()}
            for item in (first, *others):
                yield StateRange(item.parameter, item.start, {kind: item.of(t) for kind, t in states.items()})

    def counters(self) -> dict[str, float]:
        scaler = {name: getattr(self.optimizer.loss_scaler, name) for name in self._scaler_counters()}
        return {"adam_steps": adam_steps(self.adamw), **scaler}

    def load_counters(self, counters: Mapping[str, float]) -> None:
        set_adam_steps(self.adamw, counters["adam_steps"])
        for name in self._scaler_counters():
            if name in counters:
                scaler = self.optimizer.loss_scaler
                setattr(scaler, name, type(getattr(scaler, name))(counters[name]))

    def memory(self) -> OptimizerMemory:
        states = self.adamw.state.values()
        return OptimizerMemory(
            parameters=num_bytes(self._parameter_buffers()),
            master_weights=num_bytes(self._master_buffers()),
            moments=num_bytes(tensor for state in states for kind, tensor in state.items() if kind != "step"),
            gradients=num_bytes(self._gradient_buffers()),
        )

    def masters(self) -> Iterable[Tensor]:
        """Every master buffer, in the same order on all ranks of the stage; at ZeRO-0 in fp32 none."""
        return self._master_buffers()

    @abstractmethod
    def _parameter_buffers(self) -> Iterable[Tensor]: ...

    @abstractmethod
    def _master_buffers(self) -> Iterable[Tensor]: ...

    def _gradient_buffers(self) -> Iterable[Tensor]:
        return (shard for _, shard in self.gradient_shards())

    def _master_state(self, master: Tensor, moments: tuple[str, ...]) -> dict[str, Tensor]:
        """Tensors of the master's shape by state kind; writing into them changes the state."""
        return adam_state(self.adamw, master, moments)

    def _init_loss_scale(self) -> None:
        never_fail_at_min_scale(self.optimizer)

    def _scaler_counters(self) -> tuple[str, ...]:
        return SCALER_COUNTERS if self.settings.precision == "fp16" else ()


class PartitionedOptimizer(DeepSpeedOptimizer):
    """A family whose update is DeepSpeed's own step, with our norm (ZeRO-1 to 3)."""

    norm_method: ClassVar[str] = "get_grad_norm_direct"
    """The method that DeepSpeed asks for the norm of a parameter group."""

    def __init__(self, engine: Any, stage: Stage, groups: ProcessGroups, settings: OptimizerSettings) -> None:
        super().__init__(engine, stage, groups, settings)
        self._norm_override = NormOverride(self.optimizer, self.norm_method)
        self._update_loss_scale = postpone_scale_update(self.optimizer)
        self._deepspeed_step = replace_step(self.optimizer, self.step)

    def reduce_gradients(self) -> None:
        super().reduce_gradients()
        self._norm_override.set(self.grad_norm)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

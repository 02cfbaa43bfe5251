"""The protocol between the engine and an optimizer whose state is sharded over data-parallel ranks.

There is one implementation per ZeRO family: zero0.py, zero1_2.py, zero3.py and offloaded.py; families.py chooses one.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from pretrain.config.engine import LossScaleConfig
from pretrain.engine.optimizer.partition import Partition

GradientShard = tuple[nn.Parameter, Tensor]
"""A parameter, and this rank's shard of its reduced gradient: a view, writing into it changes the update."""


@dataclass(frozen=True)
class StateRange:
    """Consecutive elements of a flat parameter in the state kinds `weight`, `exp_avg` and `exp_avg_sq`.

    Muon has `momentum` in place of the last two.
    """

    parameter: nn.Parameter
    start: int
    """Index of the first element in the flat parameter."""
    states: Mapping[str, Tensor]
    """One-dimensional views of equal length by state kind."""


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes that this rank holds between two steps."""

    parameters: int
    master_weights: int
    """0 if the parameters themselves are the master weights."""
    moments: int
    gradients: int
    """Sums of the current step. They are only complete just before the update."""


@dataclass(frozen=True)
class OptimizerSettings:
    """The settings that the update depends on."""

    precision: str
    clip_grad_norm: float
    """0: no clipping."""
    loss_scale: LossScaleConfig
    """Used in fp16 only."""
    reduce_per_step: bool
    """Whether a step holds whole gradients and reduces them once, instead of after each backward pass."""
    gather_per_step: bool
    """Whether ZeRO-3 gathers the parameters once per step and keeps them."""


class ShardedOptimizer(Protocol):
    """AdamW over data-parallel ranks. All methods are called on all ranks together, except `forward`."""

    partition: Partition
    """The elements that this rank updates."""
    grad_norm: float
    """Global norm of the last step's gradients, before clipping; includes the loss scale."""

    @property
    def replicated(self) -> bool:
        """Whether every data-parallel rank holds the same state."""
        ...

    @property
    def loss_scale(self) -> float: ...

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    # Forward and backward passes.

    def forward(self, chunk: int, *args: Any, **kwargs: Any) -> Tensor:
        """Run a chunk such that a backward pass through its output reduces gradients."""
        ...

    def gather_until_step(self) -> None:
        """Gather parameters that stay gathered until the step, if the settings ask for it."""
        ...

    def release_gathered(self) -> None:
        """Free gathered parameters after forward passes without a step."""
        ...

    def scale_loss(self, loss: Tensor) -> Tensor: ...

    def reduction(self) -> AbstractContextManager[Any]:
        """The context for all backward passes of a step."""
        ...

    # One step, in this order.

    def zero_gradients(self) -> None: ...

    def gradient_shards(self) -> Iterator[GradientShard]:
        """This rank's shards, after the reduction over data-parallel ranks."""
        ...

    def reduce_gradients(self) -> None:
        """Sum what tensor-parallel ranks and pipeline ends have only parts of, then measure `grad_norm`."""
        ...

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Reduce, clip, update, and refresh the parameters; skips the update if `grad_norm` is not finite.

        DeepSpeed's engine calls it as its optimizer's step, after the reduction over data-parallel ranks.
        """
        ...

    # Checkpoints.

    def state(self, moments: tuple[str, ...]) -> Iterator[StateRange]:
        """Every range that this rank holds, with these moments. Creates the moments before the first step."""
        ...

    def refresh_parameters(self) -> None:
        """Copy the fp32 master weights into the parameters that the forward pass uses."""
        ...

    def counters(self) -> dict[str, float]:
        """The state besides tensors: Adam's step count and the loss scale."""
        ...

    def load_counters(self, counters: Mapping[str, float]) -> None: ...

    def memory(self) -> OptimizerMemory: ...

"""What the loop, the evaluator and the checkpoint ask of an engine, and what they get."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank."""

    loss: float
    """Mean over the targets of the global batch that count, in nats; NaN where none does."""
    grad_norm: float
    """Global norm before clipping; inf where the step was skipped."""
    applied: bool
    """Whether the parameters were updated; False after an overflow or a NaN."""
    loss_scale: float
    seconds_forward_backward: float
    seconds_optimizer: float


@dataclass(frozen=True)
class StateShard:
    """What this rank holds of one logical tensor: a flat row-major range of a rectangular part.

    `data` is a one-dimensional view of the live tensor: writing into it changes the state.
    """

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    origin: tuple[int, ...]
    """Where the part begins in the tensor."""
    part_shape: tuple[int, ...]
    start: int
    """Where the range begins in the flat part."""
    data: Tensor
    copy: int = 0
    """Which of its copies this is: what several ranks hold alike, each of them writes a part of."""
    copies: int = 1


class Trainable(Protocol):
    """The part of an engine that the training loop calls."""

    def train_step(self, tokens: Tensor, lr: float, mask: Tensor | None = None) -> StepResult:
        """Forward, backward and update on this rank's samples [n, s + 1] of one global batch.

        `mask` [n, s]: which targets count; None: all. It is given on all ranks or on none.
        """
        ...


class Engine(Trainable, Protocol):
    """A model with its optimizer, spread over ranks; every method is called on all ranks together."""

    def evaluate(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Sum of the losses in nats and number of the targets that `mask` [n, s] counts, fp64 [2], over all ranks."""
        ...

    def logits(self, tokens: Tensor) -> Tensor:
        """Next-token logits [b, s, vocabulary] in fp32 of tokens [b, s]; the same tokens on every rank."""
        ...

    def state_shards(self, *, weights_only: bool = False) -> Iterator[StateShard]:
        """Master weights (`weight/...`) and Adam moments (`exp_avg/...`, `exp_avg_sq/...`), all fp32."""
        ...

    def before_next_update(self, wait: Callable[[], None]) -> None:
        """Call `wait` before the state changes: somebody is reading the shards meanwhile."""
        ...

    def counters(self) -> dict[str, float]:
        """The numbers besides tensors that the next step depends on."""
        ...

    def restored(self, counters: Mapping[str, float]) -> None:
        """Told after every shard was written into: take the counters, refresh what is derived."""
        ...

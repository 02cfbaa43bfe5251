"""The protocol between an engine and its callers: the training loop, the evaluator and the checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from pretrain.engine.text_cache import EngineCache


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step, the same on every rank."""

    loss: float
    """Mean in nats over the targets of the global batch that count; NaN if no target counts."""
    grad_norm: float
    """Global norm before clipping; inf if the update was skipped."""
    applied: bool
    """Whether the parameters were updated; False after an overflow or a NaN."""
    loss_scale: float
    seconds_forward_backward: float
    seconds_optimizer: float


@dataclass(frozen=True)
class StateShard:
    """The elements of one logical tensor that this rank holds: a flat row-major range of a rectangular part.

    `data` is a one-dimensional view of the live tensor: writing into it changes the state.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    origin: tuple[int, ...]
    """Index in the tensor at which the part starts."""
    part_shape: tuple[int, ...]
    start: int
    """Index in the flat part at which the range starts."""
    data: Tensor
    copy: int = 0
    """Index among equal copies on several ranks. Each of these ranks writes a part of the range."""
    copies: int = 1


class Trainable(Protocol):
    """The methods of an engine that the training loop calls."""

    def train_step(self, tokens: Tensor, lr: float, mask: Tensor | None = None) -> StepResult:
        """Forward, backward and update on this rank's samples [n, s + 1] of one global batch.

        `mask` [n, s]: which targets count; None: all. Pass it on all ranks or on none.
        """
        ...


class Engine(Trainable, Protocol):
    """A model with its optimizer, distributed over ranks. Call every method on all ranks together."""

    def evaluate(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Sum of the losses in nats, and number of targets, that `mask` [n, s] counts on all ranks; fp64 [2]."""
        ...

    def logits(self, tokens: Tensor) -> Tensor:
        """Next-token logits [b, s, vocabulary] in fp32 of tokens [b, s]. Pass the same tokens on every rank."""
        ...

    def new_cache(self, rows: int, capacity: int | None = None) -> "EngineCache":
        """An empty cache of so many texts of up to `capacity` tokens; None: the model's context."""
        ...

    def extend(self, tokens: Sequence[Sequence[int]], cache: "EngineCache") -> Tensor:
        """Append tokens to each text (at least one); fp32 logits [b, vocabulary] after the last of each, on every rank.

        Raises ValueError if a text has no room for them.
        """
        ...

    def score_next(self, tokens: Sequence[Sequence[int]], cache: "EngineCache") -> Tensor:
        """Append all tokens but the last of each row (at least two) to its text; scores of its second to last token.

        The result [2, b, s] is that of `score`, padded at the end of shorter rows. Raises ValueError if a text has no
        room for them.
        """
        ...

    def score(self, tokens: Tensor) -> Tensor:
        """Log-probability in nats of each next token of tokens [b, s + 1], and 1 where no token is likelier: [2, b, s].

        Pass the same tokens on every rank of a replica. Logits are not gathered.
        """
        ...

    def state_shards(self, *, weights_only: bool = False) -> Iterator[StateShard]:
        """Weights (`weight/...`), and Adam's `exp_avg/...` and `exp_avg_sq/...` or Muon's `momentum/...`, all fp32."""
        ...

    def before_next_update(self, wait: Callable[[], None]) -> None:
        """Call `wait` before the state changes, because a save is still reading the shards."""
        ...

    def counters(self) -> dict[str, float]:
        """The state besides tensors: the step count of the optimizer and the loss scale."""
        ...

    def load_counters(self, counters: Mapping[str, float]) -> None:
        """Restore the counters, and the parameters from the state shards. Call it after writing into all shards."""
        ...

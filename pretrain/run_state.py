"""What a run must carry over a stop, besides tensors: if it is not here, it is not resumed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands after `step` optimizer steps."""

    step: int = 0
    position: int = 0
    """Samples taken from the data stream, skipped steps included: the next global position."""
    tokens: int = 0
    """Tokens in those samples."""
    bad_steps: int = 0
    """Steps left out because of a NaN or an infinity."""
    overflow_steps: int = 0
    """Steps left out while fp16's loss scale was too high; a lower one follows."""
    skipped_samples: int = 0
    """Of those samples, how many did not count because their shard is bad."""
    train_seconds: float = 0.0
    """Time spent in training so far, over all attempts."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "RunState":
        return RunState(**values)

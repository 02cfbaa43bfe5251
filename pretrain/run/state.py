"""The state of a run besides tensors: a resume restores exactly this."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run after `step` optimizer steps."""

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
    """The number of those samples that were skipped because their shard is bad."""
    train_seconds: float = 0.0
    """Time spent in training so far, over all attempts."""
    batch_changes: tuple[tuple[int, int], ...] = ()
    """Pairs of a step and the tokens until then: after it, batches had another size."""
    cut_tokens: int | None = None
    """The length that train.max_minutes has cut the run to; None: it is as long as configured."""
    cut_minutes: float | None = None
    """The train.max_minutes that this cut was made for; with another value the cut does not count."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "RunState":
        changes = tuple((int(step), int(tokens)) for step, tokens in values.get("batch_changes", ()))
        return RunState(**{**values, "batch_changes": changes})

    def with_batches_of(self, tokens: int) -> "RunState":
        """The state before steps of `tokens` tokens each; a change of the batch size is recorded."""
        step, before = self.batch_changes[-1] if self.batch_changes else (0, 0)
        if self.tokens - before == (self.step - step) * tokens:
            return self
        return replace(self, batch_changes=(*self.batch_changes, (self.step, self.tokens)))

    def tokens_after(self, step: int) -> int:
        """The tokens that were trained on after this step, which is in the past."""
        corners = [(0, 0), *self.batch_changes, (self.step, self.tokens)]
        for (first, before), (last, after) in itertools.pairwise(corners):
            if first <= step <= last and first < last:
                return before + (after - before) * (step - first) // (last - first)
        return self.tokens

    def first_batch(self) -> int | None:
        """The tokens of the first step; None before it."""
        return self.tokens_after(1) if self.step else None

"""Compares recomputed steps with their records: exact, equal within a tolerance for a reason, or diverged."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.resume.tolerance import Tolerance

Values = Mapping[str, Any]

COMPUTED = ("loss", "grad_norm")
"""Quantities that may differ within the tolerance; all others must be equal."""
QUANTITIES = ("batch_hash", *COMPUTED, "lr", "loss_scale")
_OF_LR = 1e-12
"""Relative tolerance of the learning rate: another machine may round the same formula differently."""


@dataclass(frozen=True)
class StepPair:
    """A step as recorded and as recomputed."""

    step: int
    recorded: Values
    replayed: Values

    def difference(self, *quantities: str) -> float:
        """The largest relative difference. 0: equal to the last bit; inf: not numbers, or only one is finite."""
        return max((relative_difference(*values) for values in self.both(*quantities)), default=0.0)

    def both(self, *quantities: str) -> Iterator[tuple[Any, Any]]:
        for name in quantities:
            if name in self.recorded and name in self.replayed:
                yield self.recorded[name], self.replayed[name]


@dataclass(frozen=True)
class Divergence:
    """The first step that differs from its record by more than the tolerance."""

    step: int
    quantity: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"step {self.step}: {self.quantity} {self.recorded} recorded, {self.replayed} now"


@dataclass(frozen=True)
class Comparison:
    """The result of comparing recomputed steps with their records."""

    kind: Literal["exact", "within", "diverged"]
    num_steps: int
    """The number of compared steps."""
    within: float = 0.0
    """For kind `within`: the power of ten that bounds the relative difference of losses and gradient norms."""
    because: tuple[str, ...] = ()
    divergence: Divergence | None = None

    def __str__(self) -> str:
        if self.kind == "exact":
            return "exact"
        reasons = "; ".join(self.because)
        if self.kind == "within":
            return f"equal within {self.within:.0e} because {reasons}"
        return f"diverged at {self.divergence}; {f'what differs: {reasons}' if reasons else 'nothing known differs'}"


def compare_steps(pairs: Sequence[StepPair], checkpoint_step: int, tolerance: Tolerance) -> Comparison:
    """Compare the pairs; the first difference beyond the tolerance decides."""
    for pair in pairs:
        bounds = dict.fromkeys(COMPUTED, tolerance.allowed(pair.step - checkpoint_step)) | {"lr": _OF_LR}
        for quantity in QUANTITIES:
            if pair.difference(quantity) > bounds.get(quantity, 0.0):
                (values,) = pair.both(quantity)
                return Comparison(
                    "diverged",
                    len(pairs),
                    because=tolerance.because,
                    divergence=Divergence(pair.step, quantity, *values),
                )
    furthest = max((pair.difference(*QUANTITIES) for pair in pairs), default=0.0)
    if furthest == 0:
        return Comparison("exact", len(pairs))
    because = tolerance.because or ("lr is rounded in another way",)
    return Comparison("within", len(pairs), within=10.0 ** math.ceil(math.log10(furthest)), because=because)


def relative_difference(one: Any, other: Any) -> float:
    """The relative difference of two values; two NaNs are equal."""
    if one == other or (one != one and other != other):
        return 0.0
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (one, other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))


def recorded_steps(records: Iterable[dict[str, Any]]) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Step -> its last train record, and a message for each step whose records differ."""
    steps: dict[int, dict[str, Any]] = {}
    unlike: dict[int, str] = {}
    for record in records:
        if record["kind"] != "train":
            continue
        step = record["step"]
        if step in steps:
            pair = StepPair(step, steps[step], record)
            for quantity in QUANTITIES:
                if pair.difference(quantity):
                    ((first, last),) = pair.both(quantity)
                    unlike[step] = f"step {step} was recorded twice: {quantity} {first}, then {last}, which counts"
                    break
        steps[step] = record
    return dict(sorted(steps.items())), list(unlike.values())

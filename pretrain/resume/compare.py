"""Steps computed again beside their records: exact, equal within some digits for a reason, or where they part."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.resume.tolerance import Excuse

Values = Mapping[str, Any]

COMPUTED = ("loss", "grad_norm")
"""What may differ where there is an excuse."""
QUANTITIES = ("batch_hash", *COMPUTED, "lr", "loss_scale")
_OF_LR = 1e-12
"""Relative: the same formula on another machine."""


@dataclass(frozen=True)
class Pair:
    """A step as it was recorded and as it was computed again."""

    step: int
    recorded: Values
    replayed: Values

    def apart(self, *quantities: str) -> float:
        """The largest relative difference; 0: the same to the last bit, inf: no numbers, or only one is finite."""
        return max((apart(*values) for values in self.both(*quantities)), default=0.0)

    def both(self, *quantities: str) -> Iterator[tuple[Any, Any]]:
        for name in quantities:
            if name in self.recorded and name in self.replayed:
                yield self.recorded[name], self.replayed[name]


@dataclass(frozen=True)
class Parting:
    """Where repeated steps leave the record."""

    step: int
    quantity: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"step {self.step}: {self.quantity} {self.recorded} recorded, {self.replayed} now"


@dataclass(frozen=True)
class Verdict:
    """What repeating showed."""

    kind: Literal["exact", "within", "parts"]
    num_steps: int
    """Steps that were compared."""
    within: float = 0.0
    """The power of ten that no loss and gradient norm differs by more than, relatively; of `within`."""
    because: tuple[str, ...] = ()
    parted: Parting | None = None

    def __str__(self) -> str:
        if self.kind == "exact":
            return "exact"
        reasons = "; ".join(self.because)
        if self.kind == "within":
            return f"equal within {self.within:.0e} because {reasons}"
        return f"parts at {self.parted}; {f'what differs: {reasons}' if reasons else 'nothing known differs'}"


def judge(pairs: Sequence[Pair], checkpoint_step: int, excuse: Excuse) -> Verdict:
    """Compare; of several differences the first counts."""
    for pair in pairs:
        bounds = dict.fromkeys(COMPUTED, excuse.allowed(pair.step - checkpoint_step)) | {"lr": _OF_LR}
        for quantity in QUANTITIES:
            if pair.apart(quantity) > bounds.get(quantity, 0.0):
                (values,) = pair.both(quantity)
                return Verdict(
                    "parts", len(pairs), because=excuse.because, parted=Parting(pair.step, quantity, *values)
                )
    furthest = max((pair.apart(*QUANTITIES) for pair in pairs), default=0.0)
    if furthest == 0:
        return Verdict("exact", len(pairs))
    because = excuse.because or ("lr is rounded in another way",)
    return Verdict("within", len(pairs), within=10.0 ** math.ceil(math.log10(furthest)), because=because)


def apart(one: Any, other: Any) -> float:
    """Relative difference of two values; NaN is as NaN."""
    if one == other or (one != one and other != other):
        return 0.0
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (one, other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))


def recorded_steps(records: Iterable[dict[str, Any]]) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Step -> the last record of its training; and, in words, the steps whose records differ."""
    steps: dict[int, dict[str, Any]] = {}
    unlike: dict[int, str] = {}
    for record in records:
        if record["kind"] != "train":
            continue
        step = record["step"]
        if step in steps:
            pair = Pair(step, steps[step], record)
            for quantity in QUANTITIES:
                if pair.apart(quantity):
                    ((first, last),) = pair.both(quantity)
                    unlike[step] = f"step {step} was recorded twice: {quantity} {first}, then {last}, which counts"
                    break
        steps[step] = record
    return dict(sorted(steps.items())), list(unlike.values())

"""Which guessed numbers of a machine's record a predicted step depends on most."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.planner.memory import Modes
from pretrain.planner.time.hardware import Hardware, Quantity
from pretrain.planner.time.step import predict_step

CHANGE = 0.1
"""Relative change of a number that is tried."""
LEAST_EFFECT = 0.001
"""Smaller relative effects on a step are left out."""


@dataclass(frozen=True)
class Sensitivity:
    """A guessed number, and its effect on a step."""

    name: str
    """Dotted, as in the record."""
    effect: float
    """Relative change of the step's time when the number is 10 % worse."""


def guesses_that_matter(
    config: RunConfig, vocab_size: int, world_size: int, modes: Modes, hardware: Hardware
) -> list[Sensitivity]:
    """The guessed numbers on which the step depends, most important first."""
    seconds = predict_step(config, vocab_size, world_size, modes, hardware).seconds
    found = []
    for name, quantity in hardware.quantities():
        if quantity.origin != "guess":
            continue
        changed = predict_step(config, vocab_size, world_size, modes, _with(hardware, name, quantity))
        effect = abs(changed.seconds / seconds - 1)
        if effect >= LEAST_EFFECT:
            found.append(Sensitivity(name, effect))
    return sorted(found, key=lambda item: -item.effect)


def _with(record: Any, name: str, quantity: Quantity) -> Any:
    """The record with this number 10 % lower: the rates fall, and latencies change as much in the other direction."""
    first, _, rest = name.partition(".")
    if rest:
        return dataclasses.replace(record, **{first: _with(getattr(record, first), rest, quantity)})
    return dataclasses.replace(record, **{first: dataclasses.replace(quantity, value=quantity.value * (1 - CHANGE))})

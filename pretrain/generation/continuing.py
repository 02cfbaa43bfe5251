"""Continuations of several prompts together, each with a random generator of its own."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pretrain.generation.growing_text import GrowingText
from pretrain.generation.sampling import Choice, choose
from pretrain.generation.stepper import Stepper

Reason = Literal["length", "end", "stop"]


@dataclass(frozen=True)
class Chosen:
    """A token of a continuation."""

    token: int
    log_probability: float
    """Natural logarithm of the model's own probability, before temperature, top-k and top-p."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place with their log-probabilities, if they were asked for."""


@dataclass
class Continuation:
    """One continuation of one prompt."""

    prompt: list[int]
    seed: int
    growing: GrowingText
    chosen: list[Chosen] = field(default_factory=list)
    reason: Reason = "length"

    @property
    def text(self) -> str:
        return self.growing.text


def continue_all(
    stepper: Stepper,
    continuations: Sequence[Continuation],
    choice: Choice,
    *,
    max_new_tokens: int,
    end_token: int,
    log_probabilities: int | None = None,
    show: Callable[[int, str], None] = lambda number, text: None,
) -> None:
    """Fill the continuations. Rows that have ended leave the batch.

    A row draws from its own generator, so the other rows change its result only by rounding. `show` gets
    the number of a continuation and the new text of it that is certain.
    """
    generators = [torch.Generator().manual_seed(each.seed) for each in continuations]
    active = list(range(len(continuations)))
    logits = stepper.start([each.prompt for each in continuations])
    for made in range(max_new_tokens):
        tokens, staying = [], []
        for row, number in enumerate(active):
            own = continuations[number]
            token = choose(logits[row], choice, generators[number])
            if token == end_token:
                own.reason = "end"
                show(number, own.growing.rest())
                continue
            own.chosen.append(_chosen(logits[row], token, log_probabilities))
            show(number, own.growing.add(token))
            if own.growing.is_stopped:
                own.reason = "stop"
            else:
                tokens.append(token)
                staying.append(row)
        if not staying or made + 1 == max_new_tokens:
            active = [active[row] for row in staying]
            break
        if len(staying) < len(active):
            stepper.keep(staying)
            active = [active[row] for row in staying]
        logits = stepper.step(tokens)
    for number in active:
        show(number, continuations[number].growing.rest())


def _chosen(logits: Tensor, token: int, log_probabilities: int | None) -> Chosen:
    if log_probabilities is None:
        return Chosen(token, 0.0)
    values = logits.double().log_softmax(0)
    top = values.topk(min(log_probabilities, values.numel()))
    pairs: Iterable[tuple[int, float]] = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Chosen(token, float(values[token]), tuple(pairs))

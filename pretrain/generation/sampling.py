"""Text from a model, token by token."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pretrain.config.errors import RunError
from pretrain.engine.interface import Engine


class Choice(Protocol):
    """How a token is drawn; the fields have the same meaning as in GenerateConfig."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...


def known_logits(engine: Engine, vocab_size: int) -> Callable[[Tensor], Tensor]:
    """The engine's logits of the tokens that the tokenizer has; a model may predict more (model.vocab_size)."""
    return lambda tokens: engine.logits(tokens)[..., :vocab_size]


def choose(logits: Tensor, config: Choice, generator: torch.Generator) -> int:
    """One token from logits [v]: greedy at temperature 0, else drawn after top-k and top-p (Holtzman et al. 2020).

    Raises RunError if a logit is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise RunError("the model's logits are NaN or infinite: its weights diverged, or engine.precision overflows")
    if config.temperature == 0:
        return int(logits.argmax())
    # Subtract the largest: at a temperature near 0 the others become -inf, and it stays 0.
    logits = (logits.double() - logits.max()) / config.temperature
    if config.top_k is not None:
        likeliest = logits.topk(min(config.top_k, logits.numel()))
        logits = torch.full_like(logits, -torch.inf).scatter(0, likeliest.indices, likeliest.values)
    probabilities = logits.softmax(0)
    if config.top_p is not None:
        ordered, indices = probabilities.sort(descending=True)
        # Drop the tokens after top_p is reached; the likeliest one always stays.
        beyond = ordered.cumsum(0) - ordered >= config.top_p
        probabilities = probabilities.index_fill(0, indices[beyond], 0.0)
    return int(torch.multinomial(probabilities, 1, generator=generator))

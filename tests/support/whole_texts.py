"""The plain way to continue texts, with which the cache is compared: each whole text is computed again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pretrain.generation.stepper import Windows


class WholeTexts:
    """A stepper without a cache. Time grows with the square of the length."""

    def __init__(self, logits_of: Callable[[Tensor], Tensor], max_context: int) -> None:
        """`logits_of` maps tokens [1, s] to logits [1, s, v]."""
        self._logits_of, self._max_context = logits_of, max_context

    def start(self, texts: Sequence[Sequence[int]]) -> Tensor:
        self._windows = Windows(texts, self._max_context)
        return self._logits()

    def step(self, tokens: Sequence[int]) -> Tensor:
        self._windows.add(tokens)
        return self._logits()

    def keep(self, rows: Sequence[int]) -> None:
        self._windows.keep(rows)

    def _logits(self) -> Tensor:
        seen = (self._windows.seen(row) for row in range(len(self._windows.texts)))
        return torch.stack([self._logits_of(torch.tensor([text]))[0, -1].float().cpu() for text in seen])

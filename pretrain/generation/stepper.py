"""The logits after some texts, one token at a time, from a cache.

A model sees `max_context` tokens at once. When a text has filled its window, the window moves on by half of it, and
what is left in it is read again as if it began there.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Stepper(Protocol):
    """Texts that grow together, one row each."""

    def start(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Begin with these texts (at least a token each); returns the fp32 logits [b, v] after each, on the host."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to each text; returns the logits [b, v] after them."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        ...


class Windows:
    """The part of each text that the model sees."""

    def __init__(self, texts: Sequence[Sequence[int]], max_context: int) -> None:
        self.max_context = max_context
        self.texts = [list(text) for text in texts]
        self.starts = [max(0, len(text) - max_context) for text in texts]

    def add(self, tokens: Sequence[int]) -> list[int]:
        """Add one token to each text; returns the rows whose window moved."""
        moved = []
        for row, token in enumerate(tokens):
            if len(self.texts[row]) - self.starts[row] == self.max_context:
                self.starts[row] = len(self.texts[row]) - self.max_context // 2
                moved.append(row)
            self.texts[row].append(token)
        return moved

    def seen(self, row: int) -> list[int]:
        return self.texts[row][self.starts[row] :]

    def keep(self, rows: Sequence[int]) -> None:
        self.texts, self.starts = [self.texts[row] for row in rows], [self.starts[row] for row in rows]


class GrowingCache(Protocol):
    """The keys and values of some texts."""

    def selected(self, rows: Sequence[int]) -> Self:
        """A cache of these rows alone."""
        ...

    def replace(self, rows: Sequence[int], part: Self) -> None:
        """Put the rows of `part` in place of `rows`."""
        ...


class Extending(Protocol):
    """A model with a cache: a decoder, or an engine on all its ranks."""

    def new_cache(self, rows: int) -> Any: ...

    def extend(self, tokens: Sequence[Sequence[int]], cache: Any) -> Tensor: ...


class CachedTexts:
    """Computes only the new token of each text."""

    def __init__(self, model: Extending, vocab_size: int, max_context: int) -> None:
        """`vocab_size`: tokens that the tokenizer has; the model may predict more."""
        self._model, self._vocab_size, self._max_context = model, vocab_size, max_context

    def start(self, texts: Sequence[Sequence[int]]) -> Tensor:
        self._windows = Windows(texts, self._max_context)
        self._cache: GrowingCache = self._model.new_cache(len(texts))
        return self._known(self._model.extend([self._windows.seen(row) for row in range(len(texts))], self._cache))

    def step(self, tokens: Sequence[int]) -> Tensor:
        moved = self._windows.add(tokens)
        others = [row for row in range(len(tokens)) if row not in moved]
        if not moved:
            return self._known(self._model.extend([[token] for token in tokens], self._cache))
        logits: dict[int, Tensor] = {}
        if others:
            part = self._cache.selected(others)
            found = self._model.extend([[tokens[row]] for row in others], part)
            self._cache.replace(others, part)
            logits |= dict(zip(others, found, strict=True))
        if moved:
            part = self._model.new_cache(len(moved))
            found = self._model.extend([self._windows.seen(row) for row in moved], part)
            self._cache.replace(moved, part)
            logits |= dict(zip(moved, found, strict=True))
        return self._known(torch.stack([logits[row] for row in range(len(tokens))]))

    def keep(self, rows: Sequence[int]) -> None:
        self._windows.keep(rows)
        self._cache = self._cache.selected(rows)

    def _known(self, logits: Tensor) -> Tensor:
        return logits[:, : self._vocab_size].cpu()

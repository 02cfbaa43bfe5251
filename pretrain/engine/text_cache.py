"""The KV cache of an engine: each rank keeps the keys and values of its own layers and heads.

While tokens are added, the core attention of each layer is replaced by one that reads the cache, and rotary tables are
those of the tokens' places. Recomputed or compiled layers see the same modules as in training at all other times.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.model.attention import CausalAttention
from pretrain.model.gpt import Stage
from pretrain.model.rotary import RotaryTables
from pretrain.model.text_rows import LayerCache, Placed, TextRows


@dataclass
class EngineCache:
    """The texts of an engine on this rank."""

    rows: TextRows
    layers: dict[int, LayerCache]
    """By the number of the layer on this rank, once it has seen tokens."""

    def selected(self, rows: Sequence[int]) -> "EngineCache":
        """A cache of these rows alone."""
        return EngineCache(self.rows.selected(rows), {n: layer.selected(rows) for n, layer in self.layers.items()})

    def replace(self, rows: Sequence[int], part: "EngineCache") -> None:
        """Put the rows of `part` in place of `rows`."""
        self.rows.replace(rows, part.rows)
        for number, layer in part.layers.items():
            self.layers[number].replace(rows, layer)


class _CachedAttention(nn.Module):
    """The core attention of one layer while tokens are added."""

    def __init__(self, number: int, window: int | None, cache: EngineCache, placed: Placed) -> None:
        super().__init__()
        self._number, self._window, self._cache, self._placed = number, window, cache, placed

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """query [t, b, n, d], key and value [t, b, g, d] -> [t, b, n * d]."""
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        layer = self._cache.layers.get(self._number)
        if layer is None:
            shape = (key.shape[0], key.shape[1], self._cache.rows.capacity, key.shape[3])
            layer = self._cache.layers[self._number] = LayerCache(key.new_zeros(shape), key.new_zeros(shape))
        return layer.attend(query, key, value, self._placed, self._window).permute(2, 0, 1, 3).flatten(2)


@contextlib.contextmanager
def reading(stage: Stage, cache: EngineCache, placed: Placed) -> Iterator[None]:
    """A context in which the layers of this rank read and extend the cache."""
    modules: list[Any] = list(stage.modules())
    owners = [module for module in modules if isinstance(getattr(module, "core_attention", None), CausalAttention)]
    tables = [module for module in modules if isinstance(module, RotaryTables)]
    before = [owner.core_attention for owner in owners]
    try:
        for number, owner in enumerate(owners):
            owner.core_attention = _CachedAttention(number, owner.core_attention.window, cache, placed)
        for table in tables:
            table.at(placed.places, cache.rows.capacity)
        yield
    finally:
        for owner, core in zip(owners, before, strict=True):
            owner.core_attention = core
        for table in tables:
            table.at(None)


def new_cache(rows: int, capacity: int, document_end: int | None, device: torch.device) -> EngineCache:
    return EngineCache(TextRows(rows, capacity, document_end, device), {})

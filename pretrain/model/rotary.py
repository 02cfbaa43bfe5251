"""Rotary position embeddings (Su et al. 2021), whose tables of cosines and sines all layers share.

Shapes: s sequence, b batch, n heads, d head width. As in Llama, element i of a head turns together with element
i + d / 2.
"""

from typing import Any

import torch
from megatron.core.models.common.embeddings import RotaryEmbedding
from torch import Tensor

from pretrain.config.model import ModelConfig
from pretrain.model.context import ALONE, Context
from pretrain.model.frequencies import rotary_frequencies, rotary_tables


class RotaryTables(RotaryEmbedding):
    """Tables of one chunk, made once in the precision of the layers.

    Megatron's own module hands out angles, of which each layer makes and keeps four tables.
    """

    def __init__(self, model: ModelConfig, dtype: torch.dtype, context: Context = ALONE) -> None:
        super().__init__(model.head_size, rotary_percent=1.0, use_cpu_initialization=True)
        self.inv_freq = rotary_frequencies(model)
        self._scaling, self._dtype, self._context = model.rope_scaling, dtype, context
        self._tables: Tensor | None = None
        self._own: Tensor | None = None
        self.places: Tensor | None = None
        """Places [b, s] of the tokens that come next, in texts with a cache; None: each row starts at 0."""

    def forward(self, length: int, **_: Any) -> Tensor:
        """Cosines and sines [2, s, 1, 1, d / 2] of this rank's positions among the first `length`, or [2, s, b, 1,
        d / 2] of `places`."""
        if self.places is not None:
            return self._whole(self._longest)[:, self.places.T, 0]
        if self._context.size == 1:
            return self._whole(length)[:, :length]
        if self._own is None or self._own.shape[1] * self._context.size != length:
            self._own = self._context.own(self._whole(length)[:, :length])
        return self._own

    def at(self, places: Tensor | None, longest: int = 0) -> None:
        """Give the tables of these places, which are below `longest`, until this is called with None."""
        self.places, self._longest = places, longest

    def _whole(self, length: int) -> Tensor:
        if self._tables is None or self._tables.shape[1] < length:
            frequencies = self.inv_freq.to(torch.cuda.current_device())
            tables = rotary_tables(frequencies, length, self._scaling)
            self._tables = tables[:, :, None, None].to(self._dtype)
        return self._tables


def rotate(heads: Tensor, tables: Tensor) -> Tensor:
    """heads [s, b, n, d], tables [2, s, 1, 1, d / 2] -> [s, b, n, d]. Nothing but the tables is kept."""
    rotated: Tensor = _Rotation.apply(heads, tables)
    return rotated


def rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The formula, which torch differentiates: heads [s, b, n, d], tables [s, 1, 1, d / 2] -> [s, b, n, d]."""
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, tables: Tensor) -> Tensor:
        ctx.save_for_backward(tables)
        cosines, sines = tables
        return rotated(heads, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient turns back by the same angles."""
        cosines, sines = ctx.saved_tensors[0]
        return rotated(gradients[0], cosines, -sines), None

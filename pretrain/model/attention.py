"""Causal attention through torch's scaled_dot_product_attention, in Megatron's place for a core attention.

Megatron's own writes out the full score matrix. Shapes: s sequence, b batch, n query heads, g key/value heads,
d head width.
"""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class CausalAttention(torch.nn.Module):
    """Core attention of one layer; built by Megatron's SelfAttention."""

    def __init__(self, config: TransformerConfig, layer_number: int, *_: Any, **__: Any) -> None:
        super().__init__()
        self.dropout = float(config.attention_dropout)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *_: Any, **__: Any
    ) -> Tensor:
        """query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d]; the mask is causal, none is passed."""
        assert attention_mask is None
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, heads, s, d]
        dropout = self.dropout if self.training else 0.0
        if dropout > 0.0:
            # Each tensor-parallel rank holds other heads: its mask comes from its own random stream.
            from megatron.core.tensor_parallel import get_cuda_rng_tracker

            with get_cuda_rng_tracker().fork():
                context = self._attend(query, key, value, dropout)
        else:
            context = self._attend(query, key, value, 0.0)
        return context.permute(2, 0, 1, 3).flatten(2)  # [s, b, n * d]

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        grouped = key.shape[1] != query.shape[1]
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=grouped)

"""Causal attention through torch's scaled_dot_product_attention, in Megatron's place for a core attention.

Megatron's own writes out the full score matrix. Shapes: s sequence, b batch, n query heads, g key/value heads,
d head width. Where documents are kept apart, Megatron's place for a mask carries where they begin, on the host: stages,
layers and recomputation hand it on, it says all there is to say, and nobody has to ask the device for it.
"""

from collections.abc import Sequence
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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, cuts: Tensor | None, *_: Any, **__: Any) -> Tensor:
        """query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d]."""
        dropout = self.dropout if self.training else 0.0
        if dropout > 0.0:
            # Each tensor-parallel rank holds other heads: its mask comes from its own random stream.
            from megatron.core.tensor_parallel import get_cuda_rng_tracker

            with get_cuda_rng_tracker().fork():
                return attend(query, key, value, cuts, dropout)
        return attend(query, key, value, cuts)


def attend(query: Tensor, key: Tensor, value: Tensor, cuts: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Causal attention within each document: query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d].

    `cuts`: on the host, where documents begin among the b * s tokens, one sample after the other, but for the first, as
    with each sample; None: a sample is one document. This is the place for kernels that take documents of any length
    at once.
    """
    heads = [tensor.transpose(0, 1) for tensor in (query, key, value)]  # [b, s, n or g, d]
    if cuts is None:
        context = _causal(heads, dropout)
    else:
        # A call for each document: what it must not see is not computed, so this takes less time than one causal call.
        # tensor_split refuses cuts that lie on a device.
        documents = zip(*(tensor.flatten(0, 1)[None].tensor_split(cuts, dim=1) for tensor in heads), strict=True)
        context = torch.cat([_causal(parts, dropout) for parts in documents], dim=1)  # [1, b * s, n, d]
        context = context[0].unflatten(0, heads[0].shape[:2])
    return context.transpose(0, 1).flatten(2)


def _causal(heads: Sequence[Tensor], dropout: float) -> Tensor:
    """query [b, s, n, d], key and value [b, s, g, d] -> [b, s, n, d]."""
    query, key, value = (tensor.transpose(1, 2) for tensor in heads)
    grouped = key.shape[1] != query.shape[1]
    context = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=grouped)
    return context.transpose(1, 2)

"""Causal attention through torch's scaled_dot_product_attention, in Megatron's place for a core attention.

Megatron's own writes out the full score matrix. Shapes: s sequence, b batch, n query heads, g key/value heads,
d head width. Where documents are kept apart, Megatron's place for a mask carries the position of each token within its
document: stages, layers and recomputation hand it on, and it says all there is to say.
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

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None, *_: Any, **__: Any
    ) -> Tensor:
        """query [s, b, n, d], key and value [s, b, g, d], positions [b, s] or None -> [s, b, n * d]."""
        dropout = self.dropout if self.training else 0.0
        if dropout > 0.0:
            # Each tensor-parallel rank holds other heads: its mask comes from its own random stream.
            from megatron.core.tensor_parallel import get_cuda_rng_tracker

            with get_cuda_rng_tracker().fork():
                return attend(query, key, value, positions, dropout)
        return attend(query, key, value, positions)


def attend(query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Causal attention within each document: query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d].

    `positions` [b, s] are those of the tokens in their documents, 0 where one begins, as at the start of each sample;
    None: a sample is one document. This is the place for kernels that take documents of any length at once.
    """
    heads = [tensor.transpose(0, 1) for tensor in (query, key, value)]  # [b, s, n or g, d]
    if positions is None:
        context = _causal(heads, dropout)
    else:
        # A call for each document: what it must not see is not computed, so this takes less time than one causal call.
        lengths = _document_lengths(positions)
        documents = zip(*(tensor.flatten(0, 1)[None].split(lengths, dim=1) for tensor in heads), strict=True)
        context = torch.cat([_causal(parts, dropout) for parts in documents], dim=1)  # [1, b * s, n, d]
        context = context[0].unflatten(0, positions.shape)
    return context.transpose(0, 1).flatten(2)


def _document_lengths(positions: Tensor) -> list[int]:
    """Of all documents of a batch in their order, one sample after the other."""
    starts = (positions.flatten() == 0).nonzero().flatten()
    return starts.diff(append=starts.new_tensor([positions.numel()])).tolist()


def _causal(heads: Sequence[Tensor], dropout: float) -> Tensor:
    """query [b, s, n, d], key and value [b, s, g, d] -> [b, s, n, d]."""
    query, key, value = (tensor.transpose(1, 2) for tensor in heads)
    grouped = key.shape[1] != query.shape[1]
    context = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=grouped)
    return context.transpose(1, 2)

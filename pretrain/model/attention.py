"""Causal attention through torch's scaled_dot_product_attention, in Megatron's place for a core attention.

Megatron's own writes out the full score matrix. Shapes: s sequence, b batch, n query heads, g key/value heads,
d head width. Where documents are kept apart, Megatron's place for a mask carries where they begin, on the host: stages,
layers and recomputation hand it on, it says all there is to say, and nobody has to ask the device for it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from pretrain.config.attention_kernels import Calls, Kernel, attention_kernels


@dataclass(frozen=True)
class Kernels:
    """Which of torch's kernels may compute attention; None: all, in torch's own order."""

    dropping: tuple[SDPBackend, ...] | None = None
    """With dropout, which some do not have."""
    whole: tuple[SDPBackend, ...] | None = None

    def allowed(self, dropout: float) -> AbstractContextManager[None]:
        kernels = self.dropping if dropout else self.whole
        return nullcontext() if kernels is None else sdpa_kernel(list(kernels))


ANY = Kernels()


class CausalAttention(torch.nn.Module):
    """Core attention of one layer; built by Megatron's SelfAttention."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, *_: Any, kernels: Kernels = ANY, **__: Any
    ) -> None:
        super().__init__()
        self.dropout, self.kernels = float(config.attention_dropout), kernels

    def forward(self, query: Tensor, key: Tensor, value: Tensor, cuts: Tensor | None, *_: Any, **__: Any) -> Tensor:
        """query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d]."""
        dropout = self.dropout if self.training else 0.0
        if dropout > 0.0:
            # Each tensor-parallel rank holds other heads: its mask comes from its own random stream.
            from megatron.core.tensor_parallel import get_cuda_rng_tracker

            with get_cuda_rng_tracker().fork():
                return attend(query, key, value, cuts, dropout, self.kernels)
        return attend(query, key, value, cuts, kernels=self.kernels)


def chosen_kernels(choice: Literal["auto"] | Kernel, calls: Calls) -> Kernels:
    """Those for `engine.attention`, which was found to be able; without documents torch's own choice is auto's."""
    if choice == "auto" and not calls.documents:
        return ANY
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    dropping, whole = (
        tuple(backends[kernel] for kernel in attention_kernels(choice, replace(calls, dropout=dropout)))
        for dropout in (calls.dropout, 0.0)
    )
    return Kernels(dropping, whole)


def attend(
    query: Tensor, key: Tensor, value: Tensor, cuts: Tensor | None, dropout: float = 0.0, kernels: Kernels = ANY
) -> Tensor:
    """Causal attention within each document: query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d].

    `cuts`: on the host, where documents begin among the b * s tokens, one sample after the other, but for the first, as
    with each sample; None: a sample is one document. This is the place for kernels that take documents of any length
    at once.
    """
    heads = [tensor.transpose(0, 1) for tensor in (query, key, value)]  # [b, s, n or g, d]
    if cuts is None:
        with kernels.allowed(dropout):
            context = _causal(heads, dropout)
    else:
        # A call for each document: what it must not see is not computed, so this takes less time than one causal call.
        # One split into all of them: its gradient is one concatenation, where that of each slice has the size of all.
        lengths = _lengths(cuts, heads[0].shape[:2].numel())
        documents = zip(*(tensor.flatten(0, 1)[None].split(lengths, dim=1) for tensor in heads), strict=True)
        with kernels.allowed(dropout):
            context = torch.cat([_causal(parts, dropout) for parts in documents], dim=1)  # [1, b * s, n, d]
        context = context[0].unflatten(0, heads[0].shape[:2])
    return context.transpose(0, 1).flatten(2)


def _lengths(cuts: Tensor, num_tokens: int) -> list[int]:
    """Of the documents."""
    assert cuts.device.type == "cpu", "else the device would be asked within a step"
    return [end - begin for begin, end in pairwise([0, *cuts.tolist(), num_tokens])]


def _causal(heads: Sequence[Tensor], dropout: float) -> Tensor:
    """query [b, s, n, d], key and value [b, s, g, d] -> [b, s, n, d]."""
    query, key, value = (tensor.transpose(1, 2) for tensor in heads)
    grouped = key.shape[1] != query.shape[1]
    context = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=grouped)
    return context.transpose(1, 2)

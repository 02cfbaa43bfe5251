"""Causal attention by torch's scaled_dot_product_attention, as the core attention of a layer.

Megatron's own core attention stores the full score matrix. Shapes: s sequence, b batch, n query heads, g key/value
heads, d head width. If attention stays within documents, Megatron's mask argument carries the document starts, on the
host: stages, layers and recomputation pass it on, and no layer needs a device sync to read it.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from pretrain.config.attention_kernels import AttentionRequest, Kernel, attention_kernels


@dataclass(frozen=True)
class Kernels:
    """The torch kernels that may compute attention; None: all, in torch's own order."""

    dropping: tuple[SDPBackend, ...] | None = None
    """With dropout, which some kernels do not support."""
    plain: tuple[SDPBackend, ...] | None = None

    def allowed(self, dropout: float) -> AbstractContextManager[None]:
        kernels = self.dropping if dropout else self.plain
        return nullcontext() if kernels is None else sdpa_kernel(list(kernels))


ANY = Kernels()


UNSUPPORTED = {
    "window_size": None,
    "softmax_type": "vanilla",
    "softmax_scale": None,
    "attention_output_gate": False,
    "no_rope_freq": None,
    "window_attn_skip_freq": None,
    "qk_clip": False,
    "qk_l2_norm": False,
    "rotary_interleaved": False,
    "apply_query_key_layer_scaling": False,
}
"""Options of Megatron's configuration that this attention, or the module around it, would ignore without an error."""


class CausalAttention(torch.nn.Module):
    """Core attention of one layer; built by Megatron's SelfAttention."""

    window: int | None = None
    """Number of tokens that a query sees; None: all before it."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, *_: Any, kernels: Kernels = ANY, **__: Any
    ) -> None:
        super().__init__()
        for name, value in UNSUPPORTED.items():
            assert getattr(config, name, value) == value, f"{name} would be ignored"
        self.dropout, self.kernels = float(config.attention_dropout), kernels

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, document_starts: Tensor | None, *_: Any, **__: Any
    ) -> Tensor:
        """query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d]."""
        dropout = self.dropout if self.training else 0.0
        if dropout > 0.0:
            # Each tensor-parallel rank has different heads, so its dropout mask comes from its own random stream.
            from megatron.core.tensor_parallel import get_cuda_rng_tracker

            with get_cuda_rng_tracker().fork():
                return self.attend(query, key, value, document_starts, dropout)
        return self.attend(query, key, value, document_starts, dropout)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, document_starts: Tensor | None, dropout: float
    ) -> Tensor:
        """The same, with this dropout."""
        return attend(query, key, value, document_starts, dropout, self.kernels)


def chosen_kernels(choice: Literal["auto"] | Kernel, request: AttentionRequest) -> Kernels:
    """The kernels that `engine.attention` allows. Without documents, auto leaves the choice to torch."""
    if choice == "auto" and not request.documents:
        return ANY
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    dropping, plain = (
        tuple(backends[kernel] for kernel in attention_kernels(choice, replace(request, dropout=dropout)))
        for dropout in (request.dropout, 0.0)
    )
    return Kernels(dropping, plain)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    document_starts: Tensor | None,
    dropout: float = 0.0,
    kernels: Kernels = ANY,
) -> Tensor:
    """Causal attention within each document: query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n * d].

    `document_starts`: on the host, the indices among the b * s tokens at which documents or samples start, except 0;
    None: each sample is one document. A kernel for documents of any length would be called here.
    """
    heads = [tensor.transpose(0, 1) for tensor in (query, key, value)]  # [b, s, n or g, d]
    if document_starts is None:
        with kernels.allowed(dropout):
            context = causal(heads[0], heads[1], heads[2], dropout)
    else:
        # One call per document computes only scores within documents, so it is faster than one causal call.
        # A single split has one concatenation as its gradient. The gradient of each slice would have the full size.
        lengths = _lengths(document_starts, heads[0].shape[:2].numel())
        documents = zip(*(tensor.flatten(0, 1)[None].split(lengths, dim=1) for tensor in heads), strict=True)
        with kernels.allowed(dropout):
            context = torch.cat([causal(q, k, v, dropout) for q, k, v in documents], dim=1)  # [1, b * s, n, d]
        context = context[0].unflatten(0, heads[0].shape[:2])
    return context.transpose(0, 1).flatten(2)


def _lengths(document_starts: Tensor, num_tokens: int) -> list[int]:
    """Lengths of the documents."""
    assert document_starts.device.type == "cpu", "otherwise a device sync is needed within a step"
    return [end - start for start, end in pairwise([0, *document_starts.tolist(), num_tokens])]


def causal(query: Tensor, key: Tensor, value: Tensor, dropout: float, window: int | None = None) -> Tensor:
    """query [b, q, n, d], key and value [b, k, g, d] -> [b, q, n, d].

    The queries are the last of k tokens: the last one sees all keys, and each other one key less than the next; with a
    window, only the last keys of these.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    window = window if window is not None and window < keys else None
    is_plain = queries == keys and window is None
    context = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if is_plain else lower_right(queries, keys, query.device, window),
        dropout_p=dropout,
        is_causal=is_plain,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return context.transpose(1, 2)


def lower_right(queries: int, keys: int, device: torch.device, window: int | None) -> Tensor:
    """The causal mask. On a GPU torch's mark of it keeps the fast kernels, which a mask of numbers excludes."""
    if device.type != "cpu" and window is None:
        return causal_lower_right(queries, keys)
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(keys - queries)
    return seen if window is None else seen.triu_(keys - queries - window + 1)

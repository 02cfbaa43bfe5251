"""A decoder on one device that keeps the keys and values of earlier tokens (the KV cache).

It computes what the engine computes, from the weights of a checkpoint, without process groups. Each new token costs one
pass over its own position, instead of one over the whole text.

Shapes: b rows, t new tokens, n query heads, g key/value heads, d head width, h hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.config.model import ExpertsConfig, ModelConfig
from pretrain.model.expert_products import choose, stacked_product, weighted_outputs
from pretrain.model.frequencies import rotary_frequencies, rotary_tables
from pretrain.model.text_rows import LayerCache, TextRows, last_places

EMBEDDING, POSITIONS = "embedding.word_embeddings.weight", "embedding.position_embeddings.weight"
HEAD = "output_layer.weight"


@dataclass
class Cache:
    """The keys and values of some texts, one row each."""

    rows: TextRows
    layers: list[LayerCache]

    def selected(self, rows: Sequence[int]) -> "Cache":
        """A cache of these rows alone."""
        return Cache(self.rows.selected(rows), [layer.selected(rows) for layer in self.layers])

    def replace(self, rows: Sequence[int], part: "Cache") -> None:
        """Put the rows of `part` in place of `rows`."""
        self.rows.replace(rows, part.rows)
        for layer, own in zip(self.layers, part.layers, strict=True):
            layer.replace(rows, own)


@dataclass(frozen=True)
class Linear:
    """A matrix [out, in] and its bias."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """LayerNorm if it has a bias, else RMSNorm."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        size = self.weight.shape
        if self.bias is None:
            return functional.rms_norm(hidden, size, self.weight, self.eps)
        return functional.layer_norm(hidden, size, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    attention_norm: Norm
    qkv: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    projection: Linear
    ffn_norm: Norm
    ffn: Callable[[Tensor], Tensor]
    """[b, t, h] -> [b, t, h]."""


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward block."""

    inner: Linear
    """SwiGLU: the gate's rows, then those of the other matrix."""
    outer: Linear
    is_gated: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.outer(_activated(self.inner(hidden), is_gated=self.is_gated))


@dataclass(frozen=True)
class Experts:
    """A feed-forward block of experts."""

    config: ExpertsConfig
    router: Tensor
    bias: Tensor
    inner: Tensor
    """[E, f, h], or [E, 2 f, h] with SwiGLU."""
    outer: Tensor
    """[E, h, f]."""
    shared: FeedForward | None
    is_gated: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        tokens, count = hidden.flatten(0, -2), self.config.count
        choices = choose(tokens, self.router, self.bias, self.config)
        output = weighted_outputs(self._run, tokens, choices.experts, choices.weights, range(count), count)
        if self.shared is not None:
            output = output + self.shared(tokens)
        return output.view(hidden.shape)

    def _run(self, inputs: Tensor, ends: Tensor) -> Tensor:
        inner = _activated(stacked_product(inputs, self.inner, ends), is_gated=self.is_gated)
        return stacked_product(inner, self.outer, ends)


class Decoder:
    """The model of a checkpoint. `weights` are by their names in the whole model, and may be of any floating type."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, Tensor], *, document_end: int | None = None) -> None:
        """`document_end`: the token that ends a document, if attention stays within documents (data.document_mask)."""
        self.model, self.document_end = model, document_end
        self._weights = weights
        self.embedding, self.positions = weights[EMBEDDING], weights.get(POSITIONS)
        self.head = weights[EMBEDDING if model.tie_embeddings else HEAD]
        self.layers = [self._layer(number) for number in range(model.num_layers)]
        self.final_norm = self._norm("decoder.final_layernorm")
        self._tables = self._rotary_tables() if model.position == "rope" else None
        self._weights = {}  # the gate's matrix exists once, in the fused one

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def new_cache(self, rows: int, capacity: int | None = None) -> Cache:
        """An empty cache of `rows` texts with at most `capacity` tokens each; None: the context of the model."""
        model, size = self.model, capacity or self.model.seq_length
        shape = (rows, model.kv_heads, size, model.head_size)
        layers = [LayerCache(self.embedding.new_zeros(shape), self.embedding.new_zeros(shape)) for _ in self.layers]
        return Cache(TextRows(rows, size, self.document_end, self.device), layers)

    @torch.no_grad()
    def extend(self, tokens: Sequence[Sequence[int]], cache: Cache) -> Tensor:
        """Append tokens to each row (at least one); returns the fp32 logits [b, vocabulary] after the last of each.

        Raises ValueError if a row has no room for them.
        """
        placed = cache.rows.add(tokens)
        hidden = functional.embedding(placed.tokens, self.embedding)
        if self.positions is not None:
            hidden = hidden + functional.embedding(placed.positions, self.positions)
        tables = None if self._tables is None else self._tables[:, placed.places][:, :, None]  # [2, b, 1, t, d / 2]
        for number, (layer, kept) in enumerate(zip(self.layers, cache.layers, strict=True)):
            turned = tables if self.model.rotates(number) else None
            query, key, value = self._heads(layer, layer.attention_norm(hidden), turned)
            context = kept.attend(query, key, value, placed, self.model.window_of(number)).transpose(1, 2).flatten(2)
            hidden = hidden + layer.projection(context)
            hidden = hidden + layer.ffn(layer.ffn_norm(hidden))
        last = hidden[last_places(placed.counts, self.device)]
        return functional.linear(self.final_norm(last), self.head).float()

    def _heads(self, layer: Layer, hidden: Tensor, tables: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [b, n, t, d], keys and values [b, g, t, d]."""
        model = self.model
        per_group = model.num_heads // model.kv_heads
        mixed = layer.qkv(hidden).unflatten(-1, (model.kv_heads, per_group + 2, model.head_size))
        query, key, value = mixed.split([per_group, 1, 1], 3)
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in (query, key, value))
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = layer.query_norm(query), layer.key_norm(key)
        if tables is not None:
            query, key = _rotated(query, tables), _rotated(key, tables)
        return query, key, value

    def _rotary_tables(self) -> Tensor:
        """Cosines and sines [2, s, d / 2] of all positions."""
        model = self.model
        tables = rotary_tables(rotary_frequencies(model), model.seq_length, model.rope_scaling)
        return tables.to(self.device, self.embedding.dtype)

    def _layer(self, number: int) -> Layer:
        name = f"decoder.layers.{number}"
        ffn, attention = f"{name}.mlp", f"{name}.self_attention"
        is_normed = self.model.qk_norm
        return Layer(
            attention_norm=self._norm(f"{name}.input_layernorm"),
            qkv=self._linear(f"{attention}.linear_qkv"),
            query_norm=self._norm(f"{attention}.q_layernorm") if is_normed else None,
            key_norm=self._norm(f"{attention}.k_layernorm") if is_normed else None,
            projection=self._linear(f"{attention}.linear_proj"),
            ffn_norm=self._norm(f"{name}.pre_mlp_layernorm"),
            ffn=self._experts(ffn) if self.model.has_experts(number) else self._feed_forward(ffn),
        )

    def _feed_forward(self, name: str) -> FeedForward:
        inner, outer = self._inner(f"{name}.linear_fc1"), self._linear(f"{name}.linear_fc2")
        return FeedForward(inner, outer, is_gated=self.model.activation == "swiglu")

    def _experts(self, name: str) -> Experts:
        config, is_gated = self.model.experts, self.model.activation == "swiglu"
        inner, weights = f"{name}.experts.linear_fc1", self._weights
        return Experts(
            config,
            router=weights[f"{name}.router.weight"],
            bias=weights[f"{name}.router.bias"],
            inner=torch.cat((weights[f"{inner}.gate.weight"], weights[f"{inner}.up.weight"]), 1)
            if is_gated
            else weights[f"{inner}.weight"],
            outer=weights[f"{name}.experts.linear_fc2.weight"],
            shared=self._feed_forward(f"{name}.shared") if config.shared_ffn_hidden_size else None,
            is_gated=is_gated,
        )

    def _inner(self, name: str) -> Linear:
        if self.model.activation != "swiglu":
            return self._linear(name)
        gate, up = self._linear(f"{name}.gate"), self._linear(f"{name}.up")
        bias = None if gate.bias is None or up.bias is None else torch.cat((gate.bias, up.bias))
        return Linear(torch.cat((gate.weight, up.weight)), bias)

    def _linear(self, name: str) -> Linear:
        return Linear(self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, name: str) -> Norm:
        return Norm(self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"), self.model.norm_eps)


def _activated(inner: Tensor, *, is_gated: bool) -> Tensor:
    if not is_gated:
        return functional.gelu(inner, approximate="tanh")
    gate, up = inner.chunk(2, -1)
    return functional.silu(gate).mul_(up)


def _rotated(heads: Tensor, tables: Tensor) -> Tensor:
    """heads [b, n, t, d], tables [2, b, 1, t, d / 2]; as in pretrain/model/rotary.py."""
    cosines, sines = tables
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)

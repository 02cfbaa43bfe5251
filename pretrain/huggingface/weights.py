"""The table between the tensors of a checkpoint and those of a Hugging Face folder, in both directions.

A unit is the least that can be converted alone: at most the query, key and value rows of one layer, or one table of
the vocabulary. A checkpoint has no trace of the layout that wrote it, so the table knows nothing of ranks.

Megatron keeps the rows of queries, keys and values by group: the query heads of a group, its key head, its value head.
Rotary embeddings turn the two halves of a head against each other in both, so that rows keep their order in a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pretrain.config.model import ModelConfig
from pretrain.huggingface.architectures import GPT2, LLAMA, QWEN3, architecture_of

Shape = tuple[int, ...]


class Unit(Protocol):
    """Tensors of ours that become tensors of theirs, and back, bit for bit."""

    @property
    def ours(self) -> tuple[str, ...]: ...
    @property
    def theirs(self) -> tuple[str, ...]: ...
    @property
    def our_shapes(self) -> tuple[Shape, ...]: ...
    @property
    def their_shapes(self) -> tuple[Shape, ...]: ...
    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]: ...
    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Same:
    """One tensor, with another name."""

    our_name: str
    their_name: str
    shape: Shape

    @property
    def ours(self) -> tuple[str, ...]:
        return (self.our_name,)

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.their_name,)

    @property
    def our_shapes(self) -> tuple[Shape, ...]:
        return (self.shape,)

    @property
    def their_shapes(self) -> tuple[Shape, ...]:
        return (self.shape,)

    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)

    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)


@dataclass(frozen=True)
class Transposed(Same):
    """A matrix that GPT-2 keeps as [in, out] (`Conv1D`)."""

    @property
    def their_shapes(self) -> tuple[Shape, ...]:
        return (self.shape[::-1],)

    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.T for tensor in tensors]

    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.T for tensor in tensors]


@dataclass(frozen=True)
class QueryKeyValue:
    """The projection of a layer: rows by group here, and queries, keys and values apart there."""

    our_name: str
    their_names: tuple[str, str, str]
    groups: int
    heads_per_group: int
    head_size: int
    tail: Shape
    """The shape of a row: (hidden size,) of a weight, () of a bias."""

    @property
    def ours(self) -> tuple[str, ...]:
        return (self.our_name,)

    @property
    def theirs(self) -> tuple[str, ...]:
        return self.their_names

    @property
    def our_shapes(self) -> tuple[Shape, ...]:
        return ((self.groups * (self.heads_per_group + 2) * self.head_size, *self.tail),)

    @property
    def their_shapes(self) -> tuple[Shape, ...]:
        few = (self.groups * self.head_size, *self.tail)
        return ((few[0] * self.heads_per_group, *self.tail), few, few)

    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        by_group = tensors[0].view(self.groups, self.heads_per_group + 2, self.head_size, *self.tail)
        parts = by_group.split([self.heads_per_group, 1, 1], dim=1)
        return [part.reshape(shape) for part, shape in zip(parts, self.their_shapes, strict=True)]

    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        by_group = [tensor.view(self.groups, -1, self.head_size, *self.tail) for tensor in tensors]
        return [torch.cat(by_group, dim=1).reshape(self.our_shapes[0])]


@dataclass(frozen=True)
class FusedQueryKeyValue(QueryKeyValue):
    """GPT-2's `c_attn`: queries, keys and values one after the other, a weight as [in, out]."""

    their_name: str = ""

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.their_name,)

    @property
    def their_shapes(self) -> tuple[Shape, ...]:
        return (self.our_shapes[0][::-1],)

    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        by_group = tensors[0].view(self.groups, 3, self.head_size, *self.tail)
        return [by_group.transpose(0, 1).reshape(self.our_shapes[0]).t()]

    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        by_kind = tensors[0].t().reshape(3, self.groups, self.head_size, *self.tail)
        return [by_kind.transpose(0, 1).reshape(self.our_shapes[0])]


def units(model: ModelConfig, vocab_size: int) -> Iterator[Unit]:
    """The units of a model, in the order of the layers; raises ConfigError if no class computes the model.

    A tied output layer has no tensor of its own on either side.
    """
    table = _gpt2_units if architecture_of(model) is GPT2 else _llama_units
    yield from table(model, vocab_size)


def _llama_units(model: ModelConfig, vocab_size: int) -> Iterator[Unit]:
    """LlamaForCausalLM, Qwen3ForCausalLM and Starcoder2ForCausalLM: the same names but in the feed-forward block."""
    hidden, ffn, width = model.hidden_size, model.ffn_hidden_size, model.num_heads * model.head_size
    is_gated = architecture_of(model) in (LLAMA, QWEN3)
    yield Same("embedding.word_embeddings.weight", "model.embed_tokens.weight", (vocab_size, hidden))
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
        yield from _norm(model, f"{ours}.input_layernorm", f"{theirs}.input_layernorm")
        names = [f"{theirs}.self_attn.{which}_proj" for which in "qkv"]
        for kind, tail in _kinds(model, hidden):
            named = (f"{names[0]}.{kind}", f"{names[1]}.{kind}", f"{names[2]}.{kind}")
            yield QueryKeyValue(f"{ours}.self_attention.linear_qkv.{kind}", named, *_heads(model), tail)
        if model.qk_norm:
            for which in "qk":
                mine = f"{ours}.self_attention.{which}_layernorm.weight"
                yield Same(mine, f"{theirs}.self_attn.{which}_norm.weight", (model.head_size,))
        yield from _linear(model, f"{ours}.self_attention.linear_proj", f"{theirs}.self_attn.o_proj", hidden, width)
        yield from _norm(model, f"{ours}.pre_mlp_layernorm", f"{theirs}.post_attention_layernorm")
        first, last = ("gate_proj", "down_proj") if is_gated else ("c_fc", "c_proj")
        gate = ".gate" if is_gated else ""
        yield from _linear(model, f"{ours}.mlp.linear_fc1{gate}", f"{theirs}.mlp.{first}", ffn, hidden)
        if is_gated:
            yield from _linear(model, f"{ours}.mlp.linear_fc1.up", f"{theirs}.mlp.up_proj", ffn, hidden)
        yield from _linear(model, f"{ours}.mlp.linear_fc2", f"{theirs}.mlp.{last}", hidden, ffn)
    yield from _norm(model, "decoder.final_layernorm", "model.norm")
    yield from _output(model, vocab_size)


def _gpt2_units(model: ModelConfig, vocab_size: int) -> Iterator[Unit]:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    yield Same("embedding.word_embeddings.weight", "transformer.wte.weight", (vocab_size, hidden))
    yield Same("embedding.position_embeddings.weight", "transformer.wpe.weight", (model.seq_length, hidden))
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}", f"transformer.h.{layer}"
        yield from _norm(model, f"{ours}.input_layernorm", f"{theirs}.ln_1")
        for kind, tail in _kinds(model, hidden):
            mine, fused = f"{ours}.self_attention.linear_qkv.{kind}", f"{theirs}.attn.c_attn.{kind}"
            yield FusedQueryKeyValue(mine, ("", "", ""), *_heads(model), tail, fused)
        for mine, yours, rows, columns in (
            (f"{ours}.self_attention.linear_proj", f"{theirs}.attn.c_proj", hidden, hidden),
            (f"{ours}.mlp.linear_fc1", f"{theirs}.mlp.c_fc", ffn, hidden),
            (f"{ours}.mlp.linear_fc2", f"{theirs}.mlp.c_proj", hidden, ffn),
        ):
            yield Transposed(f"{mine}.weight", f"{yours}.weight", (rows, columns))
            yield Same(f"{mine}.bias", f"{yours}.bias", (rows,))
        yield from _norm(model, f"{ours}.pre_mlp_layernorm", f"{theirs}.ln_2")
    yield from _norm(model, "decoder.final_layernorm", "transformer.ln_f")
    yield from _output(model, vocab_size)


def _heads(model: ModelConfig) -> tuple[int, int, int]:
    return model.kv_heads, model.num_heads // model.kv_heads, model.head_size


def _kinds(model: ModelConfig, columns: int) -> list[tuple[str, Shape]]:
    """The tensors of a linear layer, and the shape of one of their rows."""
    return [("weight", (columns,)), *([("bias", ())] if model.bias else [])]


def _linear(model: ModelConfig, ours: str, theirs: str, rows: int, columns: int) -> Iterator[Unit]:
    for kind, tail in _kinds(model, columns):
        yield Same(f"{ours}.{kind}", f"{theirs}.{kind}", (rows, *tail))


def _norm(model: ModelConfig, ours: str, theirs: str) -> Iterator[Unit]:
    yield Same(f"{ours}.weight", f"{theirs}.weight", (model.hidden_size,))
    if model.norm == "layernorm":
        yield Same(f"{ours}.bias", f"{theirs}.bias", (model.hidden_size,))


def _output(model: ModelConfig, vocab_size: int) -> Iterator[Unit]:
    if not model.tie_embeddings:
        yield Same("output_layer.weight", "lm_head.weight", (vocab_size, model.hidden_size))

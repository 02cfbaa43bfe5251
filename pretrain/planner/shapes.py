"""The parameters of a pipeline stage as one tensor-parallel rank holds them, from the configuration alone.

Names are those of the whole model: layers are counted over all stages, a tied head is the embedding. All
tensor-parallel ranks hold the same shapes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pretrain.config.derived import padded_vocab_size
from pretrain.config.model import ModelConfig
from pretrain.config.parallel import Chunk, ParallelConfig, stage_chunks

Shape = tuple[int, ...]
EMBEDDING, POSITIONS, HEAD = (
    "embedding.word_embeddings.weight",
    "embedding.position_embeddings.weight",
    "output_layer.weight",
)


@dataclass(frozen=True)
class StageShapes:
    """The part of the model on one rank of a pipeline stage."""

    chunks: tuple[Chunk, ...]
    """In the order of the data. There are several if the schedule is interleaved."""
    parameters: tuple[tuple[str, Shape], ...]
    """Name and local shape, vocabulary padding included."""

    @property
    def num_layers(self) -> int:
        return sum(chunk.num_layers for chunk in self.chunks)

    @cached_property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.parameters)

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of each parameter."""
        return [math.prod(shape) for _, shape in self.parameters]

    @property
    def has_embedding(self) -> bool:
        return any(chunk.embedding for chunk in self.chunks)

    @property
    def has_head(self) -> bool:
        return any(chunk.head for chunk in self.chunks)


def all_stages(model: ModelConfig, parallel: ParallelConfig, vocab_size: int) -> list[StageShapes]:
    """The shapes of every pipeline stage. The layout must be legal."""
    chunks = stage_chunks(parallel, model.num_layers)
    return [_stage(model, parallel, chunks[rank :: parallel.pp], vocab_size) for rank in range(parallel.pp)]


def layer_size(model: ModelConfig, parallel: ParallelConfig) -> float:
    """Elements of one transformer layer on one rank; the mean, if only some layers have experts."""
    dense, last = (
        sum(math.prod(shape) for _, shape in _layer(model, parallel, number)) for number in (0, model.num_layers - 1)
    )
    number = min(model.experts.dense_layers, model.num_layers) if model.experts.count else 0
    return (number * dense + (model.num_layers - number) * last) / model.num_layers


def layer_tensors(model: ModelConfig, parallel: ParallelConfig) -> int:
    """Parameters of one transformer layer, the last one."""
    return len(list(_layer(model, parallel, model.num_layers - 1)))


def _stage(model: ModelConfig, parallel: ParallelConfig, chunks: Sequence[Chunk], vocab_size: int) -> StageShapes:
    tp, hidden = parallel.tp, model.hidden_size
    table = (padded_vocab_size(model, vocab_size, tp) // tp, hidden)
    found: list[tuple[str, Shape]] = []
    for chunk in chunks:
        if chunk.embedding:
            found.append((EMBEDDING, table))
            if model.position == "learned":
                found.append((POSITIONS, (model.seq_length, hidden)))
        for number in range(chunk.first, chunk.first + chunk.num_layers):
            found += [(f"decoder.layers.{number}.{name}", shape) for name, shape in _layer(model, parallel, number)]
        if chunk.head:
            found += _norm("decoder.final_layernorm", hidden, model)
            if not model.tie_embeddings:
                found.append((HEAD, table))
            elif parallel.pp > 1:
                found.append((EMBEDDING, table))  # a copy of the first stage's
    return StageShapes(tuple(chunks), tuple(found))


def _layer(model: ModelConfig, parallel: ParallelConfig, number: int) -> Iterator[tuple[str, Shape]]:
    hidden, heads, groups, width = model.hidden_size, model.num_heads, model.kv_heads, model.head_size
    tp = parallel.tp
    yield from _norm("input_layernorm", hidden, model)
    yield from _linear("self_attention.linear_proj", hidden, heads * width // tp, model)
    yield from _linear("self_attention.linear_qkv", (heads + 2 * groups) * width // tp, hidden, model)
    if model.qk_norm:
        yield from _norm("self_attention.q_layernorm", width, model)
        yield from _norm("self_attention.k_layernorm", width, model)
    yield from _norm("pre_mlp_layernorm", hidden, model)
    if model.has_experts(number):
        yield from _experts(model, parallel)
    else:
        yield from _feed_forward("mlp", model.ffn_hidden_size, model, tp)


def _experts(model: ModelConfig, parallel: ParallelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, experts = model.hidden_size, model.experts
    own, inner = experts.count // parallel.ep, model.expert_width // parallel.etp
    yield "mlp.router.weight", (experts.count, hidden)
    yield "mlp.experts.linear_fc1.weight", (own, inner * (2 if model.activation == "swiglu" else 1), hidden)
    yield "mlp.experts.linear_fc2.weight", (own, hidden, inner)
    if experts.shared_ffn_hidden_size:
        yield from _feed_forward("mlp.shared", experts.shared_ffn_hidden_size, model, parallel.tp)


def _feed_forward(name: str, inner: int, model: ModelConfig, tp: int) -> Iterator[tuple[str, Shape]]:
    up = inner * (2 if model.activation == "swiglu" else 1)
    yield from _linear(f"{name}.linear_fc1", up // tp, model.hidden_size, model)
    yield from _linear(f"{name}.linear_fc2", model.hidden_size, inner // tp, model)


def _linear(name: str, rows: int, columns: int, model: ModelConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    if model.bias:
        yield f"{name}.bias", (rows,)


def _norm(name: str, width: int, model: ModelConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    if model.norm == "layernorm":
        yield f"{name}.bias", (width,)

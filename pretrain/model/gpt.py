"""Build this rank's part of the decoder on the meta device, and fill it with layout-independent weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional

from pretrain.config.attention_kernels import AttentionRequest
from pretrain.config.derived import padded_vocab_size
from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig
from pretrain.config.parallel import ParallelConfig, stage_chunks
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.malloc import large_blocks_apart
from pretrain.model.attention import ANY, chosen_kernels
from pretrain.model.context import Context
from pretrain.model.cross_entropy import EAGER, Passes, in_place_cross_entropy
from pretrain.model.experts import bound_block
from pretrain.model.head import OutputLayer
from pretrain.model.init import initial_value
from pretrain.model.parameters import LocalParameter, describe, mark_expert, name_in_model, own_rows, whole_shape
from pretrain.model.rotary import RotaryTables
from pretrain.model.router import Router
from pretrain.model.scaling import UNSCALED, Scaling
from pretrain.model.specs import block_spec, transformer_config


class Chunk(GPTModel):
    """GPTModel, or one pipeline chunk of it, with a loss that excludes the vocabulary's padding."""

    real_vocab_size: int
    cross_entropy: Literal["plain", "in_place", "chunked"]
    passes: Passes = EAGER
    """Used by in_place and chunked."""

    def __init__(self, model: ModelConfig, context: Context, **settings: Any) -> None:
        super().__init__(**settings)
        if self.position_embedding_type == "rope":
            self.rotary_pos_emb = RotaryTables(model, self.config.pipeline_dtype, context)
        if self.post_process:
            is_tied_here = self.pre_process and self.share_embeddings_and_output_weights
            self.output_layer = OutputLayer(
                self.config, self.vocab_size, skip_weight_param_allocation=is_tied_here, tp_group=self.tp_group
            )

    def setup_embeddings_and_output_layer(self) -> None:
        """Do nothing: both copies of a tied embedding are filled with equal values, and their gradients are summed.

        Megatron copies them by a collective, which does not work before the weights exist.
        """

    def _postprocess(self, hidden_states: Tensor, *given: Any, labels: Tensor | None = None, **named: Any) -> Tensor:
        """hidden_states [s, b, h] -> on the last stage the loss of each token [b, s], or logits without labels."""
        if not self.post_process or labels is None or self.cross_entropy != "chunked":
            output: Tensor = super()._postprocess(hidden_states, *given, labels=labels, **named)
            return output
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        loss, _ = self.output_layer(
            hidden_states,
            weight,
            labels=labels.transpose(0, 1).contiguous(),
            real=self.real_columns(self.output_layer.output_size_per_partition),
            passes=self.passes,
        )
        return loss.transpose(0, 1)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """labels [b, s], logits [s, b, v / tp] -> loss of each token [b, s], in fp32."""
        # The labels are transposed, because the logits are thousands of times larger.
        labels = labels.transpose(0, 1).contiguous()
        real = self.real_columns(logits.shape[-1])
        if self.cross_entropy == "in_place":
            parallel = self.config.tensor_model_parallel_size > 1
            first, group = self.tp_group.rank() * logits.shape[-1], self.tp_group if parallel else None
            loss = in_place_cross_entropy(logits, labels, first=first, real=real, group=group, passes=self.passes)
            return loss.transpose(0, 1)
        # Padded rows get no probability, so the loss does not depend on the amount of padding.
        if self.config.tensor_model_parallel_size > 1:
            if real < logits.shape[-1]:
                padding = torch.arange(logits.shape[-1], device=logits.device) >= real
                logits = logits.masked_fill(padding, -torch.inf)
            return tensor_parallel.vocab_parallel_cross_entropy(logits.float(), labels).transpose(0, 1)
        flat = logits[..., :real].flatten(0, 1).float()  # [s * b, v]
        loss = functional.cross_entropy(flat, labels.flatten(), reduction="none")
        return loss.view(labels.shape).transpose(0, 1)

    def real_columns(self, columns: int) -> int:
        """How many of this rank's `columns` of logits are tokens rather than padding."""
        return min(max(self.real_vocab_size - self.tp_group.rank() * columns, 0), columns)


class Stage(nn.Module):
    """The chunks of this rank: one, or several if pipeline stages are interleaved."""

    def __init__(self, config: TransformerConfig, chunks: list[Chunk]) -> None:
        super().__init__()
        self.config = config  # shared by all chunks
        self.chunks = nn.ModuleList(chunks)
        self.local: dict[nn.Parameter, LocalParameter] = {}
        self.routers: list[Router] = []

    def forward(self, chunk: int, *args: object, **kwargs: object) -> Tensor:
        output: Tensor = self.chunks[chunk](*args, **kwargs)
        return output

    def named(self) -> list[tuple[str, torch.Size, nn.Parameter]]:
        """Every parameter once, by its name in the whole model, with its shape on this rank."""
        return [(local.name, local.shape, parameter) for parameter, local in self.local.items()]


def build_stage(
    model: ModelConfig,
    *,
    parallel: ParallelConfig,
    engine: EngineConfig,
    vocab_size: int,
    seed: int,
    groups: ProcessGroups,
    device: torch.device,
    attention: AttentionRequest | None = None,
    scaling: Scaling = UNSCALED,
    partition: Callable[[nn.Parameter, Callable[..., None]], None] | None = None,
) -> Stage:
    """This rank's chunks on `device`, in the engine's precision. Process groups must exist.

    `attention`: the call for which attention kernels are chosen; None: torch chooses among all kernels.
    `partition(parameter, write)` reduces each parameter, which has a shape but no values yet, to this rank's partition.
    `write(out, start=START)` writes elements START, START + 1, ... of the flat parameter into a flat tensor. So no rank
    ever holds a whole tensor.
    """
    tp = parallel.tp
    config = transformer_config(model, parallel, engine)
    all_chunks = stage_chunks(parallel, model.num_layers)
    own = all_chunks[groups.pp_rank :: parallel.pp]
    context = Context.of(groups)
    kernels = ANY if attention is None else chosen_kernels(engine.attention, attention)
    chunks = []
    for i, part in enumerate(own):
        with torch.device("meta"):
            chunk = Chunk(
                model,
                context,
                config=config,
                transformer_layer_spec=block_spec(
                    model, part.layers, kernels, bound_block(model.experts, model.expert_width, groups), context
                ),
                vocab_size=padded_vocab_size(model, vocab_size, tp),
                max_sequence_length=model.seq_length,
                pre_process=part.embedding,
                post_process=part.head,
                parallel_output=True,
                share_embeddings_and_output_weights=model.tie_embeddings,
                position_embedding_type="learned_absolute" if model.position == "learned" else "rope",
                vp_stage=i if parallel.vp > 1 else None,
            )
        chunk.real_vocab_size, chunk.cross_entropy = vocab_size, engine.cross_entropy
        if part.head:
            chunk.output_layer.multiplier = scaling.output
        chunks.append(chunk)
    stage = Stage(config, chunks)
    with large_blocks_apart():
        for part, chunk in zip(own, chunks, strict=True):
            for name, parameter in list(chunk.named_parameters()):
                is_table = name.endswith(("word_embeddings.weight", "output_layer.weight"))
                tied = is_table and model.tie_embeddings and parallel.pp > 1
                is_copy = tied and name == "output_layer.weight"
                local = describe(name, parameter, first_layer=part.first, tied=tied, is_copy=is_copy, tp=tp)
                value = initial_value(
                    local.name, whole_shape(local, tp), model=model, vocab_size=vocab_size, seed=seed, scaling=scaling
                )
                rows = own_rows(local, model=model, tp=tp, tp_rank=groups.tp_rank)
                if partition is None:
                    data = torch.empty(local.shape, dtype=config.pipeline_dtype, device=device)
                    value.write(data.view(-1), rows)
                else:  # the shape alone, without its memory
                    data = torch.empty(1, dtype=config.pipeline_dtype, device=device).expand(local.shape)
                filled = nn.Parameter(data)
                filled.__dict__.update(parameter.__dict__)  # Megatron's marks, such as `tensor_model_parallel`
                owner, _, leaf = name.rpartition(".")
                setattr(chunk.get_submodule(owner), leaf, filled)
                stage.local[filled] = local
                if local.experts is not None and groups.layout.has_experts_apart:
                    mark_expert(filled, groups.expert_data)
                if partition is not None:
                    partition(filled, partial(value.write, rows=rows))
    for part, chunk in zip(own, chunks, strict=True):
        for name, module in chunk.named_modules():
            if isinstance(module, Router):
                module.start(name_in_model(name, part.first), device)
                stage.routers.append(module)
    return stage

"""Translate our configuration to Megatron's: the transformer configuration and the modules of a layer."""

import functools
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor
from torch.nn import functional

from pretrain.config.engine import EngineConfig, RecomputeConfig
from pretrain.config.model import ModelConfig
from pretrain.config.parallel import ParallelConfig, stage_chunks
from pretrain.model.attention import CausalAttention, Kernels
from pretrain.model.context import ALONE, Context, ContextAttention
from pretrain.model.experts import ExpertsFeedForward
from pretrain.model.feed_forward import FeedForward
from pretrain.model.self_attention import SelfAttention


def transformer_config(model: ModelConfig, parallel: ParallelConfig, engine: EngineConfig) -> TransformerConfig:
    """Megatron's configuration. Its initialisers do nothing, because init.py fills the weights afterwards."""
    gelu = functools.partial(functional.gelu, approximate="tanh")  # as in GPT-2 and GPT-3
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[engine.precision]
    return TransformerConfig(
        tensor_model_parallel_size=parallel.tp,
        sequence_parallel=parallel.sp and parallel.tp > 1,
        context_parallel_size=parallel.cp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vp if parallel.vp > 1 else None,
        pipeline_model_parallel_layout=_layout(parallel, model.num_layers) if parallel.pp > 1 else None,
        # Batched sends to one peer are matched in order: two interleaved stages would swap forward and backward
        # tensors without an error. Overlapped sends race with the freeing of outputs (megatron-core 0.16.1 on gloo).
        batch_p2p_comm=False,
        overlap_p2p_comm=False,
        deallocate_pipeline_outputs=True,
        **_recompute(engine.recompute),
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_size,
        ffn_hidden_size=model.ffn_hidden_size,
        normalization="LayerNorm" if model.norm == "layernorm" else "RMSNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=functional.silu if model.activation == "swiglu" else gelu,
        add_bias_linear=model.bias,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_method=_keep_values,
        output_layer_init_method=_keep_values,
        embedding_init_method=_keep_values,
        use_cpu_initialization=True,
        qk_layernorm=model.qk_norm,
        num_moe_experts=model.experts.count or None,  # then its schedule sets the scale of the router's losses
        moe_ffn_hidden_size=model.expert_width if model.experts.count else None,
        bf16=engine.precision == "bf16",
        fp16=engine.precision == "fp16",
        params_dtype=torch.float32,  # DeepSpeed casts, and keeps fp32 masters
        pipeline_dtype=dtype,
        # Megatron's fused functions need torch.compile or Apex. The plain ones work everywhere.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )


def block_spec(
    model: ModelConfig,
    layers: range,
    kernels: Kernels,
    experts: type[ExpertsFeedForward],
    context: Context = ALONE,
) -> TransformerBlockSubmodules:
    """The layers of a chunk, by their numbers over all stages, and our final norm.

    `experts`: the feed-forward block of those that have experts.
    """
    return TransformerBlockSubmodules(
        layer_specs=[_layer_spec(model, number, kernels, experts, context) for number in layers], layer_norm=Norm
    )


def _core_attention(window: int | None, kernels: Kernels, context: Context) -> ModuleSpec:
    """The core attention of a layer, for whole samples or for parts and windows of them."""
    if context.size == 1 and window is None:
        return ModuleSpec(CausalAttention, params={"kernels": kernels})
    return ModuleSpec(ContextAttention, params={"kernels": kernels, "context": context, "window": window})


def _layer_spec(
    model: ModelConfig, number: int, kernels: Kernels, experts: type[ExpertsFeedForward], context: Context
) -> ModuleSpec:
    """A layer of Megatron's local modules with our norms, attention and feed-forward block."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm" if model.norm == "rmsnorm" else None)
    layer.submodules.input_layernorm = Norm
    layer.submodules.pre_mlp_layernorm = Norm
    layer.submodules.mlp = experts if model.has_experts(number) else FeedForward
    layer.submodules.self_attention.module = SelfAttention
    layer.submodules.self_attention.params["rotates"] = model.rotates(number)
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = _core_attention(model.window_of(number), kernels, context)
    attention.q_layernorm = attention.k_layernorm = Norm if model.qk_norm else None
    return layer


class Norm:
    """torch's LayerNorm or RMSNorm, with the arguments of Megatron's constructor.

    Megatron's own wrapper rejects sequence parallelism. It only needs this mark: each rank gets a part of the sequence,
    so the gradients must be summed.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:  # type: ignore[misc]
        kind = torch.nn.LayerNorm if config.normalization == "LayerNorm" else torch.nn.RMSNorm
        norm = kind(hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


def _layout(parallel: ParallelConfig, num_layers: int) -> list[list[str]]:
    """Megatron's list of the modules in each chunk."""
    return [
        ["embedding"] * chunk.embedding + ["decoder"] * chunk.num_layers + ["loss"] * chunk.head
        for chunk in stage_chunks(parallel, num_layers)
    ]


def _recompute(recompute: RecomputeConfig) -> dict[str, Any]:
    match recompute.granularity:
        case "none":
            return {}
        case "selective":
            return {"recompute_granularity": "selective", "recompute_modules": list(recompute.modules)}
        case "full":
            return {
                "recompute_granularity": "full",
                "recompute_method": recompute.method,
                "recompute_num_layers": recompute.num_layers,
            }


def _keep_values(weight: Tensor) -> Tensor:
    return weight

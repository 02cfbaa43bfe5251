"""Our fields in Megatron's words: its transformer configuration and the modules of a layer."""

import functools
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor
from torch.nn import functional

from pretrain.config.model import ModelConfig
from pretrain.model.attention import CausalAttention


def transformer_config(model: ModelConfig, precision: str) -> TransformerConfig:
    """Megatron's configuration; weights are filled in afterwards (init.py), so its initialisers do nothing."""
    gelu = functools.partial(functional.gelu, approximate="tanh")  # as in GPT-2 and GPT-3
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return TransformerConfig(
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
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        use_cpu_initialization=True,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        params_dtype=torch.float32,  # DeepSpeed casts, and keeps fp32 masters
        pipeline_dtype=dtype,
        # Megatron's fused functions are torch.compile'd or need Apex: plain ones work everywhere.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )


def block_spec(model: ModelConfig) -> TransformerBlockSubmodules:
    """Layers of Megatron's local modules with our norm and attention, and the same norm at the end."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm" if model.norm == "rmsnorm" else None)
    layer.submodules.input_layernorm = Norm
    layer.submodules.pre_mlp_layernorm = Norm
    layer.submodules.self_attention.submodules.core_attention = CausalAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * model.num_layers, layer_norm=Norm)


class Norm:
    """torch's LayerNorm or RMSNorm, by Megatron's constructor."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:  # type: ignore[misc]
        kind = torch.nn.LayerNorm if config.normalization == "LayerNorm" else torch.nn.RMSNorm
        return kind(hidden_size, eps=eps)


def _leave(weight: Tensor) -> Tensor:
    return weight

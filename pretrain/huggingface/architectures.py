"""Which Hugging Face class computes what a model of ours computes, and the config.json that both share.

Four classes of transformers hold the models that this system trains. A field that none of them has is refused by name:
a reader that loads the weights would otherwise compute something else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.config.errors import ConfigError, Problem
from pretrain.config.model import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, the values of our fields that it computes, and its config.json."""

    name: str
    """The class, as `architectures` of config.json names it."""
    model_type: str
    fields: Mapping[str, object]
    """Values that these fields of ModelConfig must have; other fields are free."""
    grouped_queries: bool
    """Whether there can be fewer key/value heads than query heads."""
    free_head_size: bool
    """Whether a head can have another width than hidden_size / num_heads."""
    keys: Callable[[ModelConfig], dict[str, Any]]
    """The keys of config.json that describe the model's shape."""


def architecture_of(model: ModelConfig) -> Architecture:
    """The class that computes `model`; raises ConfigError naming the fields in which the nearest one differs."""
    differences = {known.name: list(_differences(model, known)) for known in ARCHITECTURES}
    nearest = min(ARCHITECTURES, key=lambda known: len(differences[known.name]))
    if problems := differences[nearest.name]:
        raise ConfigError(problems)
    return nearest


def config_json(model: ModelConfig, *, vocab_size: int, end_token: int, dtype: str) -> dict[str, Any]:
    """The config.json of a model; `dtype` is the torch name, as `bfloat16`.

    Both names of the data type and both places of the rotary base are written: transformers 5 and earlier readers
    each know one of them.
    """
    architecture = architecture_of(model)
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "vocab_size": vocab_size,
        "tie_word_embeddings": model.tie_embeddings,
        # In training, no token precedes a document. So readers must add none to a text.
        "bos_token_id": None,
        "eos_token_id": end_token,
        "pad_token_id": end_token,
        "initializer_range": model.init_std,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        **architecture.keys(model),
    }


def _differences(model: ModelConfig, known: Architecture) -> list[Problem]:
    hint = f"the nearest class that transformers has is {known.name}"
    found = [
        Problem(
            f"model.{field}", value, f"no Hugging Face class computes this model: {known.name} has {needed!r}", hint
        )
        for field, needed in known.fields.items()
        if (value := getattr(model, field)) != needed
    ]
    if model.window is not None:
        rule = "no config.json is written for attention within windows"
        found.append(Problem("model.window", model.window, rule))
    if model.no_rope_every is not None:
        rule = "no Hugging Face class computes this model: all layers have rotary embeddings"
        found.append(Problem("model.no_rope_every", model.no_rope_every, rule, hint))
    if model.experts.count:
        rule = "no Hugging Face folder is written for a model with experts"
        found.append(
            Problem("model.experts.count", model.experts.count, rule, "pretrain generate reads the run itself")
        )
    if model.rope_scaling.kind != "none":
        rule = "no config.json is written for scaled frequencies"
        found.append(Problem("model.rope_scaling.kind", model.rope_scaling.kind, rule))
    if model.kv_heads != model.num_heads and not known.grouped_queries:
        rule = f"no Hugging Face class computes this model: {known.name} has as many as query heads"
        found.append(Problem("model.num_query_groups", model.num_query_groups, rule, hint))
    if model.head_size * model.num_heads != model.hidden_size and not known.free_head_size:
        rule = f"no Hugging Face class computes this model: {known.name} has hidden_size / num_heads"
        found.append(Problem("model.head_dim", model.head_dim, rule, hint))
    return found


def _gpt2(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.ffn_hidden_size,
        "n_positions": model.seq_length,
        "n_ctx": model.seq_length,
        "activation_function": "gelu_new",  # the tanh approximation, as here
        "layer_norm_epsilon": model.norm_eps,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "attn_pdrop": model.attention_dropout,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    }


def _rotary(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": model.seq_length,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "attention_dropout": model.attention_dropout,
    }


def _llama(model: ModelConfig) -> dict[str, Any]:
    return {
        **_rotary(model),
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "attention_bias": model.bias,
        "mlp_bias": model.bias,
    }


def _qwen3(model: ModelConfig) -> dict[str, Any]:
    return {
        **_rotary(model),
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * model.num_layers,
    }


def _starcoder2(model: ModelConfig) -> dict[str, Any]:
    return {
        **_rotary(model),
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": model.norm_eps,
        "use_bias": model.bias,
        "sliding_window": None,
        "residual_dropout": model.hidden_dropout,
        "embedding_dropout": model.hidden_dropout,
    }


GPT2 = Architecture(
    "GPT2LMHeadModel",
    "gpt2",
    {"position": "learned", "norm": "layernorm", "activation": "gelu", "bias": True, "qk_norm": False},
    grouped_queries=False,
    free_head_size=False,
    keys=_gpt2,
)
LLAMA = Architecture(
    "LlamaForCausalLM",
    "llama",
    {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "qk_norm": False},
    grouped_queries=True,
    free_head_size=True,
    keys=_llama,
)
QWEN3 = Architecture(
    "Qwen3ForCausalLM",
    "qwen3",
    {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "qk_norm": True},
    grouped_queries=True,
    free_head_size=True,
    keys=_qwen3,
)
STARCODER2 = Architecture(
    "Starcoder2ForCausalLM",
    "starcoder2",
    {"position": "rope", "norm": "layernorm", "activation": "gelu", "qk_norm": False},
    grouped_queries=True,
    free_head_size=False,
    keys=_starcoder2,
)
ARCHITECTURES = (LLAMA, GPT2, QWEN3, STARCODER2)

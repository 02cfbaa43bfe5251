"""The model that a Hugging Face config.json describes, or each key in which it is not one of ours."""

from collections.abc import Mapping
from typing import Any

from pretrain.config.errors import ConfigError, Problem
from pretrain.config.model import ModelConfig
from pretrain.huggingface.architectures import (
    ARCHITECTURES,
    GPT2,
    LLAMA,
    QWEN3,
    STARCODER2,
    Architecture,
    architecture_of,
)


def model_of(config: Mapping[str, Any], name: str) -> ModelConfig:
    """The model that a config.json describes; raises ConfigError naming each key that this system does not compute.

    What the config does not say is filled as transformers fills it. `seq_length` is the longest context of the model.
    """
    known = _known(config)
    problems = list(_refusals(config, known))
    if problems:
        raise ConfigError(problems)
    model = _gpt2_model(config, name) if known is GPT2 else _rotary_model(config, known, name)
    assert architecture_of(model) is known
    return model


def _known(config: Mapping[str, Any]) -> Architecture:
    named = config.get("architectures") or []
    types = {known.model_type: known for known in ARCHITECTURES}
    known = types.get(str(config.get("model_type")))
    if known is None or (named and named != [known.name]):
        can = ", ".join(known.name for known in ARCHITECTURES)
        raise ConfigError([Problem("architectures", named or config.get("model_type"), f"must be one of {can}")])
    return known


FIXED: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
        "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "add_cross_attention": (False, None),
    },
    "llama": {"hidden_act": ("silu", "swish", None), "pretraining_tp": (1, None)},
    "qwen3": {
        "hidden_act": ("silu", "swish", None),
        "attention_bias": (False, None),
        "use_sliding_window": (False, None),
    },
    "starcoder2": {"hidden_act": ("gelu_pytorch_tanh", None), "sliding_window": (None,)},
}
"""The values of each key that this system computes; None: the key may be absent."""


def _refusals(config: Mapping[str, Any], known: Architecture) -> list[Problem]:
    found = [
        Problem(key, config[key], f"must be {' or '.join(repr(value) for value in allowed if value is not None)}")
        for key, allowed in FIXED[known.model_type].items()
        if key in config and config[key] not in allowed
    ]
    if known is LLAMA and bool(config.get("attention_bias")) != bool(config.get("mlp_bias")):
        rule = "must equal mlp_bias: here all linear layers have biases, or none"
        found.append(Problem("attention_bias", config.get("attention_bias"), rule))
    scaling = config.get("rope_scaling") or {}
    parameters = config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type")) or parameters.get("rope_type") or "default"
    if kind != "default":
        key = "rope_scaling" if scaling else "rope_parameters"
        found.append(Problem(f"{key}.rope_type", kind, "must be 'default': scaled rotary frequencies are not computed"))
    if config.get("partial_rotary_factor", parameters.get("partial_rotary_factor", 1)) != 1:
        found.append(Problem("partial_rotary_factor", config.get("partial_rotary_factor"), "must be 1"))
    types = config.get("layer_types") or []
    if any(kind != "full_attention" for kind in types):
        found.append(Problem("layer_types", types, "must all be 'full_attention'"))
    return found


def _gpt2_model(config: Mapping[str, Any], name: str) -> ModelConfig:
    hidden = int(config["n_embd"])
    return ModelConfig(
        name=name,
        num_layers=int(config["n_layer"]),
        hidden_size=hidden,
        num_heads=int(config["n_head"]),
        num_query_groups=None,
        head_dim=None,
        ffn_hidden_size=int(config.get("n_inner") or 4 * hidden),
        seq_length=int(config["n_positions"]),
        position="learned",
        rope_base=10000.0,
        norm="layernorm",
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        qk_norm=False,
        activation="gelu",
        bias=True,
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        hidden_dropout=float(config.get("resid_pdrop", 0.1)),
        attention_dropout=float(config.get("attn_pdrop", 0.1)),
        init_std=float(config.get("initializer_range", 0.02)),
        vocab_multiple_of=1,
    )


def _rotary_model(config: Mapping[str, Any], known: Architecture, name: str) -> ModelConfig:
    heads = int(config["num_attention_heads"])
    parameters = config.get("rope_parameters") or {}
    is_starcoder = known is STARCODER2
    return ModelConfig(
        name=name,
        num_layers=int(config["num_hidden_layers"]),
        hidden_size=int(config["hidden_size"]),
        num_heads=heads,
        num_query_groups=int(config.get("num_key_value_heads") or heads),
        head_dim=None if is_starcoder or config.get("head_dim") is None else int(config["head_dim"]),
        ffn_hidden_size=int(config["intermediate_size"]),
        seq_length=int(config["max_position_embeddings"]),
        position="rope",
        rope_base=float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0),
        norm="layernorm" if is_starcoder else "rmsnorm",
        norm_eps=float(config["norm_epsilon" if is_starcoder else "rms_norm_eps"]),
        qk_norm=known is QWEN3,
        activation="gelu" if is_starcoder else "swiglu",
        bias=bool(config.get("use_bias", True) if is_starcoder else config.get("attention_bias", False)),
        tie_embeddings=bool(config.get("tie_word_embeddings", is_starcoder)),
        hidden_dropout=float(config.get("residual_dropout", 0.0)),
        attention_dropout=float(config.get("attention_dropout", 0.0)),
        init_std=float(config.get("initializer_range", 0.02)),
        vocab_multiple_of=1,
    )

"""The model that a Hugging Face config.json describes, or each key in which it is not one of ours."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from pretrain.config.errors import MISSING, ConfigError, Problem
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

_HUGE = 1e30
"""No value of a model is as large."""

log = logging.getLogger(__name__)


def model_of(config: Mapping[str, Any], name: str) -> ModelConfig:
    """The model that a config.json describes; raises ConfigError naming each key that this system does not compute.

    The sizes must be given; any other key that is missing has the default of transformers. `seq_length` is the longest
    context of the model.
    """
    known = _known(config)
    values = _Values(config)
    values.problems += _refusals(config, known)
    model = _gpt2_model(values, name) if known is GPT2 else _rotary_model(values, known, name)
    values.refuse_problems()
    assert architecture_of(model) is known
    return model


def vocab_size_of(config: Mapping[str, Any]) -> int:
    """The number of tokens that the model predicts; raises ConfigError."""
    values = _Values(config)
    found = values.size("vocab_size")
    values.refuse_problems()
    return found


def end_token_of(config: Mapping[str, Any]) -> int | None:
    """The ID of the token that ends a text, the first if there are several; raises ConfigError."""
    value = config.get("eos_token_id")
    first: object = next(iter(value), None) if isinstance(value, list) else value
    if first is None:
        return None
    if not _is_whole(first) or first < 0:
        raise ConfigError([Problem("eos_token_id", value, "must be an ID of a token, a list of them, or null")])
    return first


def _known(config: Mapping[str, Any]) -> Architecture:
    named, kind = config.get("architectures") or [], config.get("model_type")
    if named and named not in [[known.name] for known in ARCHITECTURES]:
        raise ConfigError([Problem("architectures", named, f"must be one of {_names('name')}")])
    known = next((known for known in ARCHITECTURES if known.model_type == kind), None)
    if known is None:
        raise ConfigError([Problem("model_type", kind, f"must be one of {_names('model_type')}")])
    if named and named != [known.name]:
        raise ConfigError([Problem("architectures, model_type", (named, kind), "are not of one model")])
    return known


def _names(field: str) -> str:
    return ", ".join(getattr(known, field) for known in ARCHITECTURES)


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
        if key in config and not any(config[key] is value or config[key] == value for value in allowed)
    ]
    if known is LLAMA and bool(config.get("attention_bias")) != bool(config.get("mlp_bias")):
        rule = "must equal mlp_bias: here all linear layers have biases, or none"
        found.append(Problem("attention_bias", config.get("attention_bias"), rule))
    types = config.get("layer_types") or []
    if not isinstance(types, list) or any(kind != "full_attention" for kind in types):
        found.append(Problem("layer_types", types, "must all be 'full_attention'"))
    return found


def _gpt2_model(values: "_Values", name: str) -> ModelConfig:
    hidden, heads = values.size("n_embd"), values.size("n_head")
    values.must_divide("n_head", heads, "n_embd", hidden)
    values.warn_unless_equal("embd_pdrop", 0.1, values.fraction("resid_pdrop", 0.1))
    return ModelConfig(
        name=name,
        num_layers=values.size("n_layer"),
        hidden_size=hidden,
        num_heads=heads,
        num_query_groups=None,
        head_dim=None,
        ffn_hidden_size=values.size("n_inner", 4 * hidden),
        seq_length=values.size("n_positions", 1024),
        position="learned",
        rope_base=10000.0,
        norm="layernorm",
        norm_eps=values.number("layer_norm_epsilon", 1e-5),
        qk_norm=False,
        activation="gelu",
        bias=True,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        hidden_dropout=values.fraction("resid_pdrop", 0.1),
        attention_dropout=values.fraction("attn_pdrop", 0.1),
        init_std=values.number("initializer_range", 0.02),
        vocab_multiple_of=1,
    )


_LONGEST: Mapping[str, int] = {"llama": 2048, "qwen3": 32768, "starcoder2": 4096}
"""The `max_position_embeddings` of configurations without the key, by model type."""


def _rotary_model(values: "_Values", known: Architecture, name: str) -> ModelConfig:
    hidden, heads = values.size("hidden_size"), values.size("num_attention_heads")
    groups = values.size("num_key_value_heads", heads)
    values.must_divide("num_key_value_heads", groups, "num_attention_heads", heads)
    is_starcoder = known is STARCODER2
    head_size = None if is_starcoder else values.optional_size("head_dim", 128 if known is QWEN3 else None)
    if head_size is None:
        values.must_divide("num_attention_heads", heads, "hidden_size", hidden)
    if is_starcoder:
        values.warn_unless_equal("embedding_dropout", 0.0, values.fraction("residual_dropout", 0.0))
    return ModelConfig(
        name=name,
        num_layers=values.size("num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_query_groups=groups,
        head_dim=head_size,
        ffn_hidden_size=values.size("intermediate_size"),
        seq_length=values.size("max_position_embeddings", _LONGEST[known.model_type]),
        position="rope",
        rope_base=_rotary_base(values),
        norm="layernorm" if is_starcoder else "rmsnorm",
        norm_eps=values.number("norm_epsilon", 1e-5) if is_starcoder else values.number("rms_norm_eps", 1e-6),
        qk_norm=known is QWEN3,
        activation="gelu" if is_starcoder else "swiglu",
        bias=values.flag("use_bias", True) if is_starcoder else values.flag("attention_bias", False),
        tie_embeddings=values.flag("tie_word_embeddings", is_starcoder),
        hidden_dropout=values.fraction("residual_dropout", 0.0) if is_starcoder else 0.0,
        attention_dropout=values.fraction("attention_dropout", 0.0),
        init_std=values.number("initializer_range", 0.018042 if is_starcoder else 0.02),
        vocab_multiple_of=1,
    )


def _rotary_base(values: "_Values") -> float:
    """The base of the rotary frequencies. Scaled frequencies are refused.

    As in transformers, a `rope_scaling` that is not empty stands for the whole of `rope_parameters`, and what neither
    has is looked up in the configuration itself.
    """
    key = "rope_scaling" if values.config.get("rope_scaling") else "rope_parameters"
    given = values.config.get(key) or {}
    if not isinstance(given, dict):
        values.problems.append(Problem(key, given, "must be an object with a rope_type"))
        return 10000.0
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default":
        rule = "must be 'default': scaled rotary frequencies are not computed"
        values.problems.append(Problem(f"{key}.rope_type", kind, rule))
    if nested := [name for name, value in given.items() if isinstance(value, dict)]:
        rule = "must be one set of parameters for all layers"
        values.problems.append(Problem(f"{key}.{nested[0]}", given[nested[0]], rule))
    merged = _Values({**{name: values.config.get(name) for name in ("rope_theta", "partial_rotary_factor")}, **given})
    if merged.number("partial_rotary_factor", 1.0) != 1:
        rule = "must be 1: rotary positions of a part of each head are not computed"
        merged.problems.append(Problem("partial_rotary_factor", merged.config["partial_rotary_factor"], rule))
    base = merged.number("rope_theta", 10000.0)
    values.problems += merged.problems
    return base


class _Values:
    """Values of a configuration that others wrote. What is wrong with them is collected in `problems`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.problems: list[Problem] = []

    def refuse_problems(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1; without `default`, the key must be there. 1 stands for a wrong value."""
        found = self.optional_size(key, default)
        if found is None:
            self.problems.append(Problem(key, self.config.get(key, MISSING), "must be given"))
        return found or 1

    def optional_size(self, key: str, default: int | None) -> int | None:
        value = self.config.get(key)
        if value is None:
            return default
        if _is_whole(value) and 1 <= value < _HUGE:
            return value
        self.problems.append(Problem(key, value, "must be a whole number of at least 1"))
        return 1

    def number(self, key: str, default: float) -> float:
        """A positive finite number."""
        return self._number(key, default, "must be a positive number", lambda value: 0 < value < _HUGE)

    def fraction(self, key: str, default: float) -> float:
        return self._number(key, default, "must be at least 0 and below 1", lambda value: 0 <= value < 1)

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            self.problems.append(Problem(key, value, "must be true or false"))
        return default if value is None else bool(value)

    def must_divide(self, key: str, value: int, other: str, whole: int) -> None:
        if not self.problems and whole % value:
            self.problems.append(Problem(key, value, f"must divide {other}={whole}"))

    def warn_unless_equal(self, key: str, default: float, hidden_dropout: float) -> None:
        """Say that the dropout of embeddings is that of the layers here."""
        if not self.problems and self.fraction(key, default) != hidden_dropout:
            log.warning("%s is not used: embeddings have the dropout of the layers, %g", key, hidden_dropout)

    def _number(self, key: str, default: float, rule: str, is_allowed: Callable[[float], bool]) -> float:
        value = self.config.get(key)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and is_allowed(value):
            return float(value)
        self.problems.append(Problem(key, value, rule))
        return default


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)

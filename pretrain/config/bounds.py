"""Ranges of single numbers: which keys must be positive, not negative, a fraction, or at most some limit."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from pretrain.config.errors import Problem
from pretrain.config.run import RunConfig

LARGEST = 1 << 24
"""Far more tokens than a sample has, or pieces than a tokenizer; what is held for each of them must fit the memory."""
MOST_LAYERS = 10_000

SEED_RULE = f"must be from {-(1 << 62)} to {1 << 62}"


def is_seed(value: float) -> bool:
    """Whether a generator takes it, and what is added to it for a rank or an epoch."""
    return abs(value) <= 1 << 62


_POSITIVE = {
    "model": (
        "num_layers hidden_size num_heads num_query_groups head_dim ffn_hidden_size seq_length vocab_multiple_of "
        "norm_eps rope_base no_rope_every window full_attention_every"
    ),
    "model.rope_scaling": ("original_length low_freq_factor high_freq_factor beta_fast beta_slow attention_factor"),
    "model.experts": "topk ffn_hidden_size scale",
    "train": "global_batch_size micro_batch_size max_steps max_tokens max_minutes warn_epochs",
    "optim": "lr eps base_width base_depth embedding_lr_ratio",
    "optim.muon": "lr_ratio iterations",
    "evaluation": "max_samples final_max_samples micro_batch_size domain_bytes",
    "checkpoint": "keep_last",
    "checkpoint.local": "keep_last",
    "tracking": "log_every_steps peak_tflops",
    "engine": "cpu_threads timeout_minutes init_timeout_minutes",
    "engine.loss_scale": "window minimum hysteresis",
    "engine.recompute": "num_layers",
    "parallel": "tp pp vp cp ep etp",
}
_NOT_NEGATIVE = {
    "model": "init_std",
    "model.experts": "count shared_ffn_hidden_size dense_layers sequence_loss z_loss bias_rate",
    "train": "max_bad_steps",
    "optim": "weight_decay clip_grad_norm",
    "lr_schedule": "warmup_steps warmup_tokens",
    "evaluation": "every_steps next_lines",
    "checkpoint": "every_steps every_minutes keep_every",
    "checkpoint.local": "every_steps every_minutes",
}
_SHARE = {"lr_schedule": "final_ratio decay_fraction"}
_BELOW_ONE = {"model": "hidden_dropout attention_dropout", "optim": "beta1 beta2", "optim.muon": "momentum"}


Bound = tuple[Mapping[str, str], str, Callable[[float], bool]]

_CACHE_BOUNDS: tuple[Bound, ...] = (
    ({"data.cache": "max_bytes timeout_seconds"}, "must be greater than 0", lambda value: value > 0),
    ({"data.cache": "timeout_seconds"}, "must be at most 86400, which is a day", lambda value: value <= 86400),
    ({"data.cache": "retries retry_seconds"}, "must not be negative", lambda value: value >= 0),
)
BOUNDS: tuple[Bound, ...] = (
    *_CACHE_BOUNDS,
    (_POSITIVE, "must be greater than 0", lambda value: value > 0),
    (_NOT_NEGATIVE, "must not be negative", lambda value: value >= 0),
    ({"run": "seed"}, SEED_RULE, is_seed),
    ({"model.rope_scaling": "factor"}, "must be at least 1", lambda value: value >= 1),
    (_SHARE, "must be between 0 and 1", lambda value: 0 <= value <= 1),
    (_BELOW_ONE, "must be at least 0 and less than 1", lambda value: 0 <= value < 1),
)
LIMITS: tuple[Bound, ...] = (
    (
        {
            "model": "hidden_size num_heads num_query_groups head_dim ffn_hidden_size seq_length vocab_multiple_of "
            "vocab_size",
            "train": "global_batch_size micro_batch_size",
            "model.experts": "count topk ffn_hidden_size shared_ffn_hidden_size dense_layers",
            "parallel": "tp pp vp cp ep etp",
        },
        f"must be at most {LARGEST}",
        lambda value: value <= LARGEST,
    ),
    ({"model": "num_layers"}, f"must be at most {MOST_LAYERS}", lambda value: value <= MOST_LAYERS),
)
DATA_BOUNDS: tuple[Bound, ...] = (
    *_CACHE_BOUNDS,
    (
        {
            "model": "seq_length",
            "data": "samples_per_member shard_bytes",
            "tokenizer": "vocab_size sample_bytes",
            "prepare": "num_workers",
        },
        "must be greater than 0",
        lambda value: value > 0,
    ),
    ({"data": "validation_min_bytes"}, "must not be negative", lambda value: value >= 0),
    ({"data": "validation_fraction"}, "must be at least 0 and less than 1", lambda value: 0 <= value < 1),
    ({"data": "max_document_bytes"}, "must be at least 1024", lambda value: value >= 1024),
    (
        {"model": "seq_length", "tokenizer": "vocab_size"},
        f"must be at most {LARGEST}",
        lambda value: value <= LARGEST,
    ),
)


def out_of_range(config: RunConfig, bounds: Iterable[Bound]) -> Iterator[Problem]:
    for keys, rule, holds in bounds:
        for key in (f"{section}.{name}" for section, names in keys.items() for name in names.split()):
            value = _value_at(config, key)
            # Some integers are too large to be asked whether they are finite.
            if value is not None and not ((isinstance(value, int) or math.isfinite(value)) and holds(value)):
                yield Problem(key, value, rule)


def _value_at(config: RunConfig, key: str) -> float | None:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    assert value is None or isinstance(value, int | float)
    return value

"""Each number of the configuration has its bound. The tables repeat those of the program: they are the expectation."""

import pytest

from pretrain.config.checks import check_prepare, check_run
from pretrain.config.errors import ConfigError
from tests.unit.config.test_checks import changed

POSITIVE = {
    "model": (
        "num_layers hidden_size num_heads num_query_groups head_dim ffn_hidden_size seq_length vocab_multiple_of "
        "norm_eps rope_base no_rope_every window full_attention_every"
    ),
    "model.rope_scaling": "original_length low_freq_factor high_freq_factor beta_fast beta_slow attention_factor",
    "train": "global_batch_size micro_batch_size max_steps max_minutes warn_epochs",
    "optim": "lr eps",
    "evaluation": "max_samples final_max_samples micro_batch_size",
    "checkpoint": "keep_last",
    "tracking": "log_every_steps peak_tflops",
    "engine": (
        "cpu_threads timeout_minutes init_timeout_minutes loss_scale.window loss_scale.minimum loss_scale.hysteresis "
        "recompute.num_layers"
    ),
}
NOT_NEGATIVE = {
    "model": "init_std",
    "train": "max_bad_steps",
    "optim": "weight_decay clip_grad_norm",
    "lr_schedule": "warmup_steps warmup_tokens",
    "evaluation": "every_steps",
    "checkpoint": "every_steps every_minutes keep_every",
}
SHARES = {"lr_schedule": "final_ratio decay_fraction"}
BELOW_ONE = {"model": "hidden_dropout attention_dropout", "optim": "beta1 beta2"}
DATA_POSITIVE = {
    "model": "seq_length",
    "data": "samples_per_member shard_bytes",
    "tokenizer": "vocab_size sample_bytes",
    "prepare": "num_workers",
}


def keys(sections: dict[str, str]) -> list[str]:
    return [f"{section}.{name}" for section, names in sections.items() for name in names.split()]


RANGES = [
    *((key, value, "must be greater than 0") for key in keys(POSITIVE) for value in (0, -1)),
    *((key, -1, "must not be negative") for key in keys(NOT_NEGATIVE)),
    *((key, value, "must be between 0 and 1") for key in keys(SHARES) for value in (-0.1, 1.1)),
    *((key, value, "must be at least 0 and less than 1") for key in keys(BELOW_ONE) for value in (-0.1, 1.0)),
    *((key, float("nan"), "must") for key in ("optim.lr", "optim.clip_grad_norm", "lr_schedule.final_ratio")),
    *((key, float("inf"), "must") for key in ("optim.lr", "optim.clip_grad_norm")),
]


@pytest.mark.parametrize(("key", "value", "rule"), RANGES)
def test_a_number_out_of_range_is_refused(key: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(changed(**{key.replace(".", "__"): value}), world_size=1)
    assert f"{key}={value!r}: {rule}" in str(caught.value)


DATA_RANGES = [
    *((key, 0, "must be greater than 0") for key in keys(DATA_POSITIVE)),
    ("data.validation_min_bytes", -1, "must not be negative"),
    ("data.validation_fraction", 1.0, "must be at least 0 and less than 1"),
    ("data.max_document_bytes", 1023, "must be at least 1024"),
    *((key, (1 << 24) + 1, "must be at most 16777216") for key in ("model.seq_length", "tokenizer.vocab_size")),
]


@pytest.mark.parametrize(("key", "value", "rule"), DATA_RANGES)
def test_a_data_setting_out_of_range_is_refused(key: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_prepare(changed(**{key.replace(".", "__"): value}))
    assert str(caught.value) == f"{key}={value!r}: {rule}"

"""Tiny GPT and Llama models, variants of them with uneven sizes, and batches for them."""

import functools
from typing import Any

import numpy as np

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig

VOCAB_SIZE = 91
"""Padded to 96 in both models: five rows that must not change results."""
EOD_ID = 2

_SMALL = ("num_layers=2", "hidden_size=32", "seq_length=16", "vocab_multiple_of=32")
MODELS = {
    "gpt": ("model=tiny", "model.ffn_hidden_size=64"),
    "llama": ("model=tiny_llama", "model.ffn_hidden_size=48"),
    "llama_tied": ("model=tiny_llama", "model.ffn_hidden_size=48", "model.tie_embeddings=true"),
    "llama_qk": ("model=tiny_llama", "model.ffn_hidden_size=48", "model.qk_norm=true"),
    "experts": (
        "model=tiny_llama",
        "model.ffn_hidden_size=48",
        "model.experts.count=4",
        "model.experts.ffn_hidden_size=32",
    ),
    # A dense layer, a shared expert, and all that balances the others.
    "balanced_experts": (
        "model=tiny_llama",
        "model.ffn_hidden_size=48",
        "model.experts.count=4",
        "model.experts.ffn_hidden_size=32",
        "model.experts.shared_ffn_hidden_size=32",
        "model.experts.dense_layers=1",
        "model.experts.score=sigmoid",
        "model.experts.scale=2.5",
        "model.experts.sequence_loss=0.1",
        "model.experts.z_loss=0.01",
        "model.experts.bias_rate=0.001",
    ),
    # Tied tables, grouped queries, SwiGLU, biases, and odd numbers of rows and columns over 4 ranks: flat ranges end
    # within rows.
    "all_sorts": (
        "model=tiny",
        "model.hidden_size=36",
        "model.num_heads=4",
        "model.num_query_groups=2",
        "model.ffn_hidden_size=52",
        "model.activation=swiglu",
    ),
    # 3 layers, widths and vocabulary without a common divisor: no parameter splits evenly over 2 or 3 ranks.
    "gpt_odd": (
        "model=tiny",
        "model.ffn_hidden_size=61",
        "model.hidden_size=35",
        "model.num_heads=5",
        "model.num_layers=3",
    ),
}
_SECTIONS = {
    "zero_stage": "engine",
    "precision": "engine",
    "timeout_minutes": "engine",
    "micro_batch_size": "train",
    "global_batch_size": "train",
    "seed": "run",
    "tp": "parallel",
    "sp": "parallel",
    "pp": "parallel",
    "ep": "parallel",
    "etp": "parallel",
    "vp": "parallel",
    "cp": "parallel",
    "grad_reduction": "engine",
    "param_gather": "engine",
}


@functools.lru_cache(maxsize=256)
def run_config(model: str = "gpt", *overrides: str, **values: Any) -> RunConfig:
    """A run of a tiny model on the CPU. `zero_stage=3` is short for `engine.zero_stage=3`; other names likewise."""
    small = [f"model.{setting}" for setting in _SMALL]
    named = [f"{_SECTIONS[name]}.{name}={str(value).lower()}" for name, value in values.items()]
    return load_run_config([*small, *MODELS[model], "engine.device=cpu", "tracking=off", *named, *overrides])


def batch_of(step: int, num_samples: int, config: RunConfig) -> np.ndarray:
    """Samples [n, s + 1] of the global batch of `step`; the same on every call.

    With data.document_mask it has short documents: some are cut by a sample's ends, some end with several tokens.
    """
    random = np.random.default_rng(step)
    tokens = random.integers(0, VOCAB_SIZE, (num_samples, config.model.seq_length + 1))
    if config.data.document_mask:
        tokens[random.random(tokens.shape) < 0.2] = EOD_ID
    return tokens


def batches(dp: int, micro_batches: int = 4, samples: int = 24) -> tuple[str, ...]:
    """The same global batch in every layout, in `micro_batches` per data-parallel rank."""
    assert samples % (dp * micro_batches) == 0
    return f"train.global_batch_size={samples}", f"train.micro_batch_size={samples // dp // micro_batches}"


def three_micro_batches(world_size: int) -> tuple[str, ...]:
    """The same global batch on 1, 2 or 3 ranks, in three micro-batches on each."""
    return batches(world_size, 3, 18)

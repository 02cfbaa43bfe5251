"""Hugging Face folders made of the checkpoints of tiny models with random weights."""

import json
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.whole_tensors import StoredWeights
from pretrain.config.run import RunConfig
from pretrain.export.weight_files import plan_files, write_files
from pretrain.huggingface.architectures import config_json
from pretrain.huggingface.weights import units
from pretrain.run.state import RunState
from tests.support.models import VOCAB_SIZE
from tests.support.randomised import randomise
from tests.support.saving import store_of
from tests.support.training import start

STARCODER = ("model.norm=layernorm", "model.activation=gelu", "model.bias=true", "model.num_query_groups=2")
FAMILIES = {
    "gpt": ("gpt",),
    "gpt_untied": ("gpt", "model.tie_embeddings=false"),
    "llama": ("llama", "model.num_query_groups=2"),
    "llama_bias": ("llama_tied", "model.bias=true", "model.head_dim=12"),
    "qwen3": ("llama_qk",),
    "starcoder2": ("llama", *STARCODER),
}
"""Overrides of a tiny model of each class; two of some."""


def saved(here: Any, config: RunConfig, run: Path, tokens: torch.Tensor | None = None) -> torch.Tensor | None:
    """Save random weights as the run's only checkpoint; returns the logits of `tokens`. Called on ranks."""
    engine = start(here, config)
    randomise(engine)
    store_of(engine, run).save(engine, RunState(step=1), {})
    return None if tokens is None else engine.logits(tokens)


def write_folder(folder: Path, run: Path, config: RunConfig, shard_bytes: int = 1 << 30) -> dict[str, str]:
    """The run's checkpoint as a folder without a tokenizer; returns the SHA-256 of each weight file."""
    folder.mkdir()
    files = plan_files(list(units(config.model, VOCAB_SIZE)), "float32", shard_bytes)
    weights = StoredWeights(run / "checkpoints" / "step-00000001")
    digests = write_files(folder, weights, files, "float32", workers=2, show=lambda done: None)
    described = config_json(config.model, vocab_size=VOCAB_SIZE, end_token=2, dtype="float32")
    (folder / "config.json").write_text(json.dumps(described))
    return digests

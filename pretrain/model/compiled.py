"""Transformer layers by torch.compile: one graph for all layers of a stage, without a break in it.

Tried with torch 2.13, megatron-core 0.16.1 and deepspeed 0.19.8; what cannot be one graph is refused beforehand
(config/compile_checks.py), and a break that nobody knew of is an error instead of a slow layer.
"""

import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import nn

from pretrain.config.errors import ConfigError, Problem
from pretrain.model.gpt import Stage

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_layers(stage: Stage, cache: Path, backend: str = "inductor") -> None:
    """Each layer is compiled when it is first called; `cache`: where that is kept, unless the environment says."""
    if next(stage.parameters()).device.type == "cpu" and not _has_compiler():
        rule = "on a CPU it needs a C++ compiler, and there is none here"
        raise ConfigError([Problem("engine.compile", "layers", rule, "install g++, or set engine.compile=none")])
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE) in (None, default_cache_dir()):  # which torch may have set itself by now
        os.environ[CACHE] = str(cache.absolute())
    # Megatron warns of its own calls in every linear layer, which would break the graph there.
    torch._dynamo.config.ignore_logging_functions.add(warnings.warn)
    for module in stage.chunks:
        layers: nn.ModuleList = module.decoder.layers  # type: ignore[union-attr, assignment]
        for layer in layers:
            layer.compile(backend=backend, fullgraph=True)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))

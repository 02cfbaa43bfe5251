"""Compile transformer layers by torch.compile: whole layers, or the functions between their matrix products.

The in-place cross-entropy is compiled too. All layers of a stage share one graph without graph breaks. Layouts in which
that is impossible are rejected earlier (config/compile_checks.py), and an unexpected graph break is an error. There is
no communication between matrix products, so the functions there are one graph each in every layout.
Written for torch 2.13, megatron-core 0.16.1 and deepspeed 0.19.8.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from megatron.core import utils as megatron_utils
from megatron.core.tensor_parallel import layers as megatron_layers
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from pretrain.config.errors import ConfigError, Problem
from pretrain.model.cross_entropy import compiled_block_passes, compiled_passes
from pretrain.model.gpt import Stage
from pretrain.model.rotary import rotated

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_stage(stage: Stage, how: Literal["elementwise", "layers"], cache: Path, backend: str = "inductor") -> None:
    """Compile each graph at its first use. `cache`: the folder for compiled code, unless the environment names one."""
    if next(stage.parameters()).device.type == "cpu" and not _has_compiler():
        rule = "needs a C++ compiler on a CPU, and none is installed"
        raise ConfigError([Problem("engine.compile", how, rule, "install g++, or set engine.compile=none")])
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE) in (None, default_cache_dir()):  # torch may have set it to its default already
        os.environ[CACHE] = str(cache.absolute())
    compiler = functools.partial(torch.compile, backend=backend, fullgraph=True)
    for chunk in stage.chunks:
        of_loss = compiled_block_passes if chunk.cross_entropy == "chunked" else compiled_passes
        chunk.passes = of_loss(compiler)  # type: ignore[assignment]
    if how == "elementwise":
        _compile_elementwise(stage, compiler)
        return
    for module in (megatron_layers, megatron_utils):
        # Megatron warns about its own calls in every linear layer, which would break the graph.
        module.warnings = SimpleNamespace(warn=_ignore)
    for layer in _layers(stage):
        layer.mlp.activate = _activation(stage.config)
        layer.compile(backend=backend, fullgraph=True)


def _compile_elementwise(stage: Stage, compiler: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    """Norms are not compiled: torch's own are single kernels."""
    config = stage.config
    activate = compiler(_activation(config))
    turn, sums = compiler(_rotate), functools.partial(_sums, compiler(_add))
    for layer in _layers(stage):
        layer.mlp.activate, layer.self_attention.rotate = activate, turn
        if not config.hidden_dropout:  # dropout masks would come from the compiler's own generator
            layer.self_attn_bda = layer.mlp_bda = sums


def _layers(stage: Stage) -> Iterator[Any]:
    for module in stage.chunks:
        layers: nn.ModuleList = module.decoder.layers  # type: ignore[union-attr, assignment]
        yield from layers


def _activation(config: TransformerConfig) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The formula: the compiler itself decides what to keep for the backward pass."""
    return functools.partial(_activate, config.activation_func, config.gated_linear_unit)


def _activate(activation: Callable[[Tensor], Tensor], gated: bool, inner: Tensor, bias: Tensor | None) -> Tensor:
    """inner [s, b, f], or [s, b, 2 f] if the first half gates the second, and bias of equal width -> [s, b, f]."""
    if bias is not None:
        inner = inner + bias
    if not gated:
        return activation(inner)
    gate, value = inner.chunk(2, dim=-1)
    return activation(gate) * value


def _add(output: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    return residual + (output if bias is None else output + bias)


def _sums(add: Callable[..., Tensor], _training: bool, _fused: bool) -> Callable[..., Tensor]:
    """Replace Megatron's bias-dropout-add if there is no dropout."""
    return lambda output_and_bias, residual, _probability: add(*output_and_bias, residual)


def _rotate(heads: Tensor, tables: Tensor) -> Tensor:
    """As rotary.rotate, differentiated by the compiler."""
    return rotated(heads, tables[0], tables[1])


def _ignore(*_: object, **__: object) -> None: ...


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))

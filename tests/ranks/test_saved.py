"""A layer keeps only what its backward pass reads; our functions equal those of torch and Megatron to the last bit."""

import functools
from collections.abc import Callable

import pytest
import torch
from megatron.core.models.common.embeddings import RotaryEmbedding
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.model.feed_forward import swiglu
from pretrain.model.rotary import RotaryTables, rotate
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import plain_stage

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
SAMPLES = 3


def kept_bytes(here: Runtime, config: RunConfig) -> float:
    """Bytes for each token that the second layer keeps, each storage counted once, parameters left out."""
    stage = plain_stage(here, config)
    chunk = stage.chunks[0]
    others = {parameter.untyped_storage().data_ptr() for parameter in stage.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in others:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def begin(*_: object) -> None:
        others.update(storages)
        storages.clear()

    chunk.decoder.layers[1].register_forward_pre_hook(begin)
    found: list[float] = []
    tokens = torch.arange(SAMPLES * config.model.seq_length).view(SAMPLES, -1) % 90
    chunk.decoder.layers[1].register_forward_hook(
        lambda *_: found.append(sum(storage.nbytes() for storage in storages.values()) / tokens.numel())
    )
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        stage(0, tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None, labels=tokens)
    return found[0]


SELECTIVE = "engine.recompute.granularity=selective"
CASES = {
    "llama": ("llama", {}, ()),
    "llama-tp2-sp": ("llama", {"tp": 2, "sp": True}, ()),
    "llama-attention": ("llama", {}, (SELECTIVE,)),
    "llama-bias": ("llama", {}, ("model.bias=true",)),
    "llama_qk": ("llama_qk", {}, ()),
    "gpt": ("gpt", {}, ()),
    "gpt-grouped": ("gpt", {}, ("model.num_query_groups=2",)),
    "gpt-shared-tp2": ("gpt", {"tp": 2}, ("model.num_query_groups=1",)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_keeps_only_what_backward_reads(case: str) -> None:
    """torch's own LayerNorm: a CPU has no kernel for RMSNorm, which torch then composes of others that keep more."""
    name, layout, changes = CASES[case]
    config = run_config(name, "model.norm=layernorm", *changes, **layout)
    model, tp = config.model, config.parallel.tp
    queries, keys = model.num_heads * model.head_size // tp, max(model.kv_heads // tp, 1) * model.head_size
    inner = (3 if model.activation == "swiglu" else 2) * model.ffn_hidden_size // tp
    # Inputs of the norms and of the first matrices; heads and context; inputs of the activation and the last matrix.
    kept = 4 * model.hidden_size // (tp if config.parallel.sp else 1) + 2 * queries + 2 * keys + inner
    # Means and deviations of both norms; the softmax's denominators, which a recomputed kernel does not keep.
    kept += 4 // (tp if config.parallel.sp else 1) + model.num_heads // tp * (SELECTIVE not in changes)
    if model.qk_norm:
        # The norms' inputs and statistics.
        kept += queries + keys + 2 * (model.num_heads + model.kv_heads)
    assert run_ranks(kept_bytes, tp, config)[0] == 4 * kept


def gradients(function: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, Tensor]:
    """The function's value, and the gradient of a sum with varied weights."""
    given = given.detach().requires_grad_()
    value = function(given)
    weights = torch.linspace(-2, 2, value.numel(), dtype=torch.float64).view(value.shape).to(value.dtype)
    value.backward(weights)
    assert given.grad is not None
    return value.detach(), given.grad


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))).to(dtype)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_swiglu_equals_its_formula_to_the_last_bit(dtype: torch.dtype) -> None:
    def formula(inner: Tensor) -> Tensor:
        gate, up = inner.chunk(2, -1)
        return silu(gate) * (up + 0.0)

    given = numbers(7, 3, 2 * 37, dtype=dtype)
    for mine, expected in zip(gradients(swiglu, given), gradients(formula, given), strict=True):
        assert torch.equal(mine, expected)


def turned(here: Runtime, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Values and gradients for several lengths, each by our function and by Megatron's."""
    tables = RotaryTables(run_config("llama", "model.head_dim=16", "model.rope_base=500.0").model, dtype)
    angles = RotaryEmbedding(16, 1.0, rotary_base=500.0, use_cpu_initialization=True)
    pairs: list[tuple[Tensor, Tensor]] = []
    for length in (9, 4, 21):
        given, table, freqs = numbers(length, 2, 5, 16, dtype=dtype), tables(length), angles(length)
        mine = gradients(functools.partial(rotate, tables=table), given)
        pairs += zip(mine, gradients(functools.partial(_apply_rotary_pos_emb_bshd, freqs=freqs), given), strict=True)
    return pairs


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_rotation_equals_megatrons_to_the_last_bit(dtype: torch.dtype) -> None:
    (pairs,) = run_ranks(turned, 1, dtype)
    assert len(pairs) == 6 and all(torch.equal(mine, expected) for mine, expected in pairs)


def test_gradients_equal_finite_differences() -> None:
    inner = numbers(2, 10, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(swiglu, inner)
    heads = numbers(3, 1, 2, 4, dtype=torch.float64).requires_grad_()
    angles = numbers(3, 1, 1, 2, dtype=torch.float64)
    tables = torch.stack((angles.cos(), angles.sin()))
    assert torch.autograd.gradcheck(functools.partial(rotate, tables=tables), heads)

"""Megatron's decoder, as we configure it, is the architecture of the configuration."""

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pretrain.config.checks import check_model
from pretrain.config.load import load_run_config
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.model.attention import CausalAttention
from pretrain.model.init import initial_value
from pretrain.model.parameters import logical_parts
from pretrain.model.rows import Rows
from pretrain.model.size import count_parameters
from pretrain.model.specs import transformer_config
from pretrain.optim.param_groups import parameter_groups
from tests.support.models import VOCAB_SIZE, batch_of, run_config
from tests.support.ranks import run_ranks
from tests.support.rope import reference_amplitude, reference_frequencies
from tests.support.training import plain_stage, start

# Parameters


@dataclass(frozen=True)
class Census:
    """The parameters of a built decoder."""

    shapes: dict[str, tuple[int, ...]]
    logical: dict[str, tuple[int, ...]]
    decayed: set[str]
    as_initialised: bool


def census(here: Runtime, config: RunConfig, vocab_size: int) -> Census:
    stage = plain_stage(here, config, vocab_size)
    named = {name: parameter for name, _, parameter in stage.named()}
    names = {id(parameter): name for name, parameter in named.items()}
    groups = parameter_groups(stage.named(), config.model, config.optim)
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    logical: dict[str, tuple[int, ...]] = {}
    for parameter, local in stage.local.items():
        end = 0
        for part in logical_parts(local, model=config.model, vocab_size=vocab_size, tp=1, tp_rank=0):
            assert part.offset == end and part.name not in logical
            assert part.part_shape == part.shape and not any(part.origin)
            end += math.prod(part.shape)
            logical[part.name] = part.shape
        padding = parameter.flatten()[end:]
        assert (padding == 0).all()
    # Not in the order in which the model was built.
    seed, model = config.run.seed, config.model
    same = True
    for name, p in sorted(named.items(), reverse=True):
        expected = torch.empty(p.numel())
        initial = initial_value(name, p.shape, model=model, vocab_size=vocab_size, seed=seed)
        initial.write(expected, Rows(0, 1, p.numel(), 0))
        same = same and torch.equal(expected, p.detach().flatten())
    return Census({name: tuple(p.shape) for name, p in named.items()}, logical, decayed, same)


def random_shape(number: int) -> tuple[str, ...]:
    """Overrides of a legal small model."""
    rng = random.Random(number)
    groups, group_size, half_head = rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 6)
    return (
        f"model={rng.choice(['tiny', 'tiny_llama'])}",
        f"model.num_layers={rng.randint(1, 3)}",
        f"model.hidden_size={rng.randint(3, 40)}",
        f"model.num_heads={groups * group_size}",
        f"model.num_query_groups={groups}",
        f"model.head_dim={2 * half_head}",
        f"model.ffn_hidden_size={rng.randint(1, 60)}",
        f"model.seq_length={rng.randint(1, 20)}",
        f"model.vocab_multiple_of={rng.randint(1, 64)}",
        f"model.bias={rng.choice(['true', 'false'])}",
        f"model.tie_embeddings={rng.choice(['true', 'false'])}",
        f"model.activation={rng.choice(['gelu', 'swiglu'])}",
        f"model.norm={rng.choice(['layernorm', 'rmsnorm'])}",
        f"model.position={rng.choice(['learned', 'rope'])}",
        f"model.qk_norm={rng.choice(['true', 'false'])}",
    )


SHAPES = {"tiny": ("model=tiny",), "tiny_llama": ("model=tiny_llama",)} | {
    f"random-{number}": random_shape(number) for number in range(12)
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_built_model_has_the_parameters_that_were_counted(shape: str) -> None:
    config = load_run_config([*SHAPES[shape], "engine.device=cpu"])
    assert not list(check_model(config.model))
    vocab_size = 300 + len(shape)
    (found,) = run_ranks(census, 1, config, vocab_size)
    expected = count_parameters(config.model, vocab_size)
    sizes = {name: math.prod(shape) for name, shape in found.logical.items()}
    assert sum(sizes.values()) == expected.total
    assert sum(size for name, size in sizes.items() if "layers." in name) == expected.layers
    assert sum(size for name, size in sizes.items() if "position_embeddings" in name) == expected.position
    assert found.as_initialised


LAYER = "decoder.layers.0"
DECAYED = {
    "tiny": {
        "embedding.word_embeddings.weight",
        f"{LAYER}.self_attention.linear_proj.weight",
        f"{LAYER}.self_attention.linear_qkv.weight",
        f"{LAYER}.mlp.linear_fc1.weight",
        f"{LAYER}.mlp.linear_fc2.weight",
    },
}
DECAYED["tiny_llama"] = DECAYED["tiny"] | {"output_layer.weight"}
PLAIN = {
    "tiny": {
        "embedding.position_embeddings.weight",
        f"{LAYER}.input_layernorm.weight",
        f"{LAYER}.input_layernorm.bias",
        f"{LAYER}.self_attention.linear_proj.bias",
        f"{LAYER}.self_attention.linear_qkv.bias",
        f"{LAYER}.pre_mlp_layernorm.weight",
        f"{LAYER}.pre_mlp_layernorm.bias",
        f"{LAYER}.mlp.linear_fc1.bias",
        f"{LAYER}.mlp.linear_fc2.bias",
        "decoder.final_layernorm.weight",
        "decoder.final_layernorm.bias",
    },
    "tiny_llama": {
        f"{LAYER}.input_layernorm.weight",
        f"{LAYER}.pre_mlp_layernorm.weight",
        "decoder.final_layernorm.weight",
    },
}


@pytest.mark.parametrize("preset", ["tiny", "tiny_llama"])
def test_matrices_are_decayed_and_nothing_else(preset: str) -> None:
    (found,) = run_ranks(census, 1, load_run_config([f"model={preset}", "model.num_layers=1"]), 300)
    assert found.decayed == DECAYED[preset]
    assert set(found.shapes) - found.decayed == PLAIN[preset]


def test_logical_tensors_exclude_padding_and_split_swiglu() -> None:
    (found,) = run_ranks(census, 1, run_config("llama"), VOCAB_SIZE)
    assert found.shapes["output_layer.weight"] == (96, 32)
    assert found.logical["output_layer.weight"] == (91, 32)
    assert found.shapes[f"{LAYER}.mlp.linear_fc1.weight"] == (96, 32)
    assert found.logical[f"{LAYER}.mlp.linear_fc1.gate.weight"] == (48, 32)
    assert found.logical[f"{LAYER}.mlp.linear_fc1.up.weight"] == (48, 32)


# Arithmetic


def plain_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """query, key and value [b, heads, s, d] -> [b, heads, s, d], by the definition."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    earlier = torch.ones_like(later).tril(-(window or scores.shape[-1]))
    return scores.masked_fill(later | earlier, -math.inf).softmax(-1) @ value


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1), (1, 1)])
def test_core_attention_equals_a_plain_softmax(heads: int, groups: int) -> None:
    overrides = ["model=tiny_llama", f"model.num_heads={heads}", f"model.num_query_groups={groups}", "model.head_dim=8"]
    config = load_run_config(overrides)
    attention = CausalAttention(transformer_config(config.model, config.parallel, config.engine), 1)
    generator = torch.Generator().manual_seed(heads)
    # [s, b, heads, d]
    query = torch.randn(9, 2, heads, 8, generator=generator)
    key, value = (torch.randn(9, 2, groups, 8, generator=generator) for _ in range(2))
    repeated = [t.permute(1, 2, 0, 3).repeat_interleave(heads // groups, 1) for t in (key, value)]
    expected = plain_attention(query.permute(1, 2, 0, 3), *repeated)  # [b, heads, s, d]
    found = attention(query, key, value, None)
    torch.testing.assert_close(found, expected.permute(2, 0, 1, 3).flatten(2), rtol=1e-5, atol=1e-6)


def plain_logits(tokens: Tensor, weights: dict[str, Tensor], model: ModelConfig) -> Tensor:
    """The decoder as in its papers, from named weights: tokens [b, s] -> logits [b, s, padded vocabulary]."""
    x = weights["embedding.word_embeddings.weight"][tokens]
    if model.position == "learned":
        x = x + weights["embedding.position_embeddings.weight"][: tokens.shape[1]]
    for layer in range(model.num_layers):
        at = f"decoder.layers.{layer}"
        normed = _norm(x, weights, f"{at}.input_layernorm", model)
        x = x + _attention(normed, weights, f"{at}.self_attention", model, layer)
        inner = _linear(_norm(x, weights, f"{at}.pre_mlp_layernorm", model), weights, f"{at}.mlp.linear_fc1")
        if model.activation == "swiglu":
            gate, up = inner.chunk(2, -1)
            inner = gate * torch.sigmoid(gate) * up
        else:
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + _linear(inner, weights, f"{at}.mlp.linear_fc2")
    x = _norm(x, weights, "decoder.final_layernorm", model)
    return x @ weights["embedding.word_embeddings.weight" if model.tie_embeddings else "output_layer.weight"].T


def _linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _norm(x: Tensor, weights: dict[str, Tensor], name: str, model: ModelConfig) -> Tensor:
    if model.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + model.norm_eps).sqrt()
    return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", torch.zeros(()))


def _attention(x: Tensor, weights: dict[str, Tensor], name: str, model: ModelConfig, layer: int) -> Tensor:
    batch, length, _ = x.shape
    groups, head, per_group = model.kv_heads, model.head_size, model.num_heads // model.kv_heads
    # Each group's rows: its query heads, then its key, then its value.
    mixed = _linear(x, weights, f"{name}.linear_qkv").view(batch, length, groups, per_group + 2, head)
    query = mixed[..., :per_group, :].reshape(batch, length, model.num_heads, head).transpose(1, 2)
    key, value = (mixed[..., per_group + i, :].transpose(1, 2).repeat_interleave(per_group, 1) for i in range(2))
    if model.qk_norm:
        query = _norm(query, weights, f"{name}.q_layernorm", model)
        key = _norm(key, weights, f"{name}.k_layernorm", model)
    if model.position == "rope" and (
        model.no_rope_every is None or layer % model.no_rope_every < model.no_rope_every - 1
    ):
        query, key = _rotate(query, model), _rotate(key, model)
    has_window = model.full_attention_every is None or (layer + 1) % model.full_attention_every
    out = plain_attention(query, key, value, model.window if has_window else None).transpose(1, 2).flatten(2)
    return _linear(out, weights, f"{name}.linear_proj")


def _rotate(x: Tensor, model: ModelConfig) -> Tensor:
    """Su et al. 2021, with the pairs half a head apart as in Llama."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]), torch.tensor(reference_frequencies(model)))
    a, b = x[..., :half], x[..., half:]
    turned = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
    return turned * reference_amplitude(model)


@dataclass(frozen=True)
class Outputs:
    logits: np.ndarray
    expected: np.ndarray
    losses: np.ndarray
    """The model's loss of each token."""


def outputs(here: Runtime, config: RunConfig) -> Outputs:
    stage = plain_stage(here, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in stage.parameters():  # at the initial values, norm weights and biases have no effect
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
        tokens = torch.from_numpy(batch_of(0, 3, config))
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        positions = torch.arange(inputs.shape[1]).expand(len(inputs), -1)
        logits = stage(0, inputs, positions, None)
        losses = stage(0, inputs, positions, None, labels=labels)
        expected = plain_logits(inputs, {name: p for name, _, p in stage.named()}, config.model)
    return Outputs(logits.numpy(), expected.numpy(), losses.numpy())


LLAMA3, YARN = (
    (
        "model.rope_base=100.0",
        f"model.rope_scaling.kind={kind}",
        "model.rope_scaling.factor=4",
        "model.rope_scaling.original_length=30",
    )
    for kind in ("llama3", "yarn")
)
ARCHITECTURES = {
    # A large epsilon and a small base have a visible effect.
    "gpt": run_config("gpt", "model.norm_eps=0.1"),
    "llama": run_config("llama", "model.norm_eps=0.1", "model.rope_base=100.0"),
    "llama3": run_config("llama", *LLAMA3),
    "yarn": run_config("llama", *YARN),
    "windows": run_config("llama", "model.num_layers=3", "model.window=5", "model.full_attention_every=2"),
    "window of one": run_config("gpt", "model.window=1"),
    "no_rope": run_config("llama", "model.num_layers=3", "model.no_rope_every=2", "model.rope_base=100.0"),
    "llama_tied": run_config("llama_tied", "model.num_query_groups=1"),
    "wide_heads": run_config("gpt", "model.head_dim=12", "model.num_query_groups=2"),
    "qk_norm": run_config("llama", "model.qk_norm=true", "model.norm_eps=0.1"),
    "mixed": run_config("llama", "model.bias=true", "model.norm=layernorm", "model.activation=gelu"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_architecture(name: str) -> None:
    (found,) = run_ranks(outputs, 1, ARCHITECTURES[name])
    np.testing.assert_allclose(found.logits, found.expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found.logits).max() > 1


@pytest.mark.parametrize(("option", "value"), [("window_size", (4, 0)), ("softmax_type", "learnable")])
def test_an_option_of_megatron_that_attention_would_ignore_is_refused(option: str, value: object) -> None:
    config = load_run_config(["model=tiny"])
    made = transformer_config(config.model, config.parallel, config.engine)
    setattr(made, option, value)
    with pytest.raises(AssertionError, match=option):
        CausalAttention(made, 1)


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_loss_is_the_cross_entropy_over_the_real_vocabulary(name: str) -> None:
    config = ARCHITECTURES[name]
    (found,) = run_ranks(outputs, 1, config)
    labels = torch.from_numpy(batch_of(0, 3, config)[:, 1:])
    real = torch.from_numpy(found.logits)[..., :VOCAB_SIZE].double()
    expected = functional.cross_entropy(real.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    np.testing.assert_allclose(found.losses, expected.numpy(), rtol=1e-5, atol=1e-5)


def logits_with_later_tokens_changed(here: Runtime, config: RunConfig) -> list[np.ndarray]:
    engine = start(here, config)
    first = torch.from_numpy(batch_of(0, 2, config)[:, :-1])
    second = first.clone()
    second[:, 9:] = (second[:, 9:] + 1) % VOCAB_SIZE
    return [engine.logits(tokens).numpy() for tokens in (first, second, first[:, :9])]


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_a_later_token_changes_no_earlier_logit(name: str) -> None:
    (found,) = run_ranks(logits_with_later_tokens_changed, 1, run_config(name))
    first, second, short = found
    assert first.shape == (2, 16, VOCAB_SIZE)
    assert np.array_equal(first[:, :9], second[:, :9])
    assert (first[:, 9:] != second[:, 9:]).any(-1).all()
    np.testing.assert_allclose(short, first[:, :9], rtol=1e-5, atol=1e-6)


def evaluated(here: Runtime, config: RunConfig) -> list[list[float]]:
    """Totals over three samples, with and without a masked fourth, split over the ranks."""
    engine = start(here, config)
    batch = torch.from_numpy(batch_of(0, 4, config))
    mask = torch.tensor([1, 1, 1, 0])[:, None].expand(-1, config.model.seq_length)
    other = batch.clone()
    other[3] = 0
    own = slice(here.rank, None, here.world_size)
    return [engine.evaluate(tokens[own], mask[own]).tolist() for tokens in (batch, other)]


@pytest.mark.parametrize("stage", [0, 3])
def test_evaluation_sums_what_counts_over_all_ranks(stage: int) -> None:
    config = run_config("gpt", zero_stage=stage, micro_batch_size=2, global_batch_size=4)
    ((alone, _),) = run_ranks(evaluated, 1, config)
    per_rank = run_ranks(evaluated, 2, config)
    assert alone[1] == 3 * 16 and 4 < alone[0] / alone[1] < 5
    for totals, other in per_rank:
        assert totals == other
        assert totals == pytest.approx(alone, rel=1e-6)
    assert per_rank[0] == per_rank[1]

"""Initial weights are a pure function of seed and name."""

import math

import pytest
import torch

from pretrain.config.load import load_run_config
from pretrain.model import init
from pretrain.model.init import initial_value
from pretrain.model.rows import Rows

MODEL = load_run_config(["model=tiny", "model.num_layers=8", "model.init_std=0.03"]).model
VOCAB_SIZE = 1000
EMBEDDING, POSITION = "embedding.word_embeddings.weight", "embedding.position_embeddings.weight"
QKV, PROJECTION = (
    "decoder.layers.3.self_attention.linear_qkv.weight",
    "decoder.layers.3.self_attention.linear_proj.weight",
)
FC1, FC2 = "decoder.layers.3.mlp.linear_fc1.weight", "decoder.layers.3.mlp.linear_fc2.weight"


def value(name: str, *shape: int, seed: int = 7) -> torch.Tensor:
    whole = torch.empty(shape)
    value = initial_value(name, whole.shape, model=MODEL, vocab_size=VOCAB_SIZE, seed=seed)
    value.write(whole.view(-1), Rows(0, 1, whole.numel(), 0))
    return whole


@pytest.mark.parametrize("name", [EMBEDDING, POSITION, QKV, FC1, "output_layer.weight"])
def test_matrices_are_normal_with_the_given_deviation(name: str) -> None:
    weights = value(name, VOCAB_SIZE, 128)
    assert weights.std().item() == pytest.approx(0.03, rel=0.02)
    assert abs(weights.mean().item()) < 0.001
    assert weights.abs().max().item() > 4 * 0.03  # not truncated


@pytest.mark.parametrize("name", [PROJECTION, FC2])
def test_std_of_residual_projections_shrinks_with_depth(name: str) -> None:
    assert value(name, 500, 128).std().item() == pytest.approx(0.03 / math.sqrt(2 * 8), rel=0.02)


def test_biases_are_zero_and_gains_one() -> None:
    assert (value(QKV.replace("weight", "bias"), 384) == 0).all()
    assert (value("decoder.final_layernorm.bias", 128) == 0).all()
    assert (value("decoder.final_layernorm.weight", 128) == 1).all()
    assert (value("decoder.layers.0.input_layernorm.weight", 128) == 1).all()


def test_values_depend_on_seed_and_name_alone() -> None:
    first = [value(QKV, 96, 32), value(FC1, 96, 32)]
    torch.manual_seed(99)
    torch.rand(5)
    again = [value(FC1, 96, 32), value(QKV, 96, 32)]
    assert torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], value(QKV, 96, 32, seed=8))
    assert not torch.equal(first[0], value(QKV.replace("layers.3", "layers.4"), 96, 32))


def test_drawing_them_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    value(QKV, 96, 32)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", [EMBEDDING, "output_layer.weight"])
@pytest.mark.parametrize("width", [128, 35])
def test_padding_rows_are_zero_and_change_no_other(name: str, width: int) -> None:
    plain, padded = value(name, VOCAB_SIZE, width), value(name, VOCAB_SIZE + 24, width)
    assert (padded[VOCAB_SIZE:] == 0).all() and (padded[:VOCAB_SIZE] != 0).all()
    assert torch.equal(plain, padded[:VOCAB_SIZE])


@pytest.mark.parametrize("piece", [64, 1000, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [EMBEDDING, QKV, PROJECTION, "decoder.final_layernorm.weight"])
def test_a_slice_has_the_values_of_the_whole_tensor(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, piece: int
) -> None:
    shape = (VOCAB_SIZE + 24,) if "layernorm" in name else (VOCAB_SIZE + 24, 35)
    whole = value(name, *shape).flatten().to(dtype)
    monkeypatch.setattr(init, "PIECE", piece)  # the number that is drawn at a time must not show
    part = initial_value(name, torch.Size(shape), model=MODEL, vocab_size=VOCAB_SIZE, seed=7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    rows, share = Rows(0, 1, len(whole), 0), -(-len(whole) // 3)
    for start in range(0, len(whole), share):
        out = torch.empty(min(share, len(whole) - start), dtype=dtype)
        part.write(out, rows, start)
        assert torch.equal(out, whole[start : start + share])

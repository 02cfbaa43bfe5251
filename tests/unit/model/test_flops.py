"""Floating-point operations per token, worked out by hand for one model."""

from dataclasses import replace

import pytest

from pretrain.config.load import load_run_config
from pretrain.model.flops import token_flops
from pretrain.model.size import checkpoint_bytes, count_parameters

MODEL = load_run_config(
    [
        "model=tiny_llama",
        "model.num_layers=3",
        "model.hidden_size=8",
        "model.num_heads=4",
        "model.num_query_groups=2",
        "model.ffn_hidden_size=20",
        "model.seq_length=16",
    ]
).model
# A layer: query and output 8 x 8 each, key and value 4 x 8 each; three matrices of 8 x 20; two norms of 8.
LAYER = 64 + 64 + 32 + 32 + 3 * 160 + 16
VOCAB_SIZE = 50


def test_parameters_by_hand() -> None:
    count = count_parameters(MODEL, VOCAB_SIZE)
    assert (count.embedding, count.position, count.layers, count.final_norm) == (2 * 400, 0, 3 * LAYER, 8)
    assert count.total == 800 + 3 * LAYER + 8
    adamw, muon = (load_run_config([f"optim={name}"]).optim for name in ("adamw", "muon"))
    assert checkpoint_bytes(MODEL, adamw, VOCAB_SIZE) == 12 * count.total
    assert checkpoint_bytes(MODEL, muon, VOCAB_SIZE) == 12 * count.total - 4 * 3 * (LAYER - 16)


def test_flops_equal_those_counted_by_hand() -> None:
    flops = token_flops(MODEL, VOCAB_SIZE)
    # The input embedding is a look-up, the output layer a product, tied or not.
    assert flops.six_n == 6 * (3 * LAYER + 8 + 400)
    # Scores and weighted values: 2 products of s x d per head and token, 2 operations per product, 3 passes, of which
    # the causal mask needs half.
    assert flops.six_n_12lhs - flops.six_n == 3 * (2 * 2 * 3) * 4 * 2 * 16
    assert flops.six_n_6lhs - flops.six_n == (flops.six_n_12lhs - flops.six_n) / 2


def test_windows_take_fewer_flops() -> None:
    windows = replace(MODEL, window=4, full_attention_every=3)
    # Of three layers, two see 1 + 2 + 3 + 4 * 13 tokens instead of 1 + 2 + ... + 16.
    share = (2 * 58 + 136) / (3 * 136)
    plain, fewer = (token_flops(model, VOCAB_SIZE) for model in (MODEL, windows))
    assert fewer.six_n == plain.six_n
    assert fewer.six_n_6lhs - fewer.six_n == pytest.approx(share * (plain.six_n_6lhs - plain.six_n))

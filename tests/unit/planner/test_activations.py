"""The estimate of activations against the formulas and schedules it is taken from."""

import functools
from typing import Any

import pytest

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.planner.activations import activation_bytes, chunks_in_flight, layer_bytes
from pretrain.planner.shapes import all_stages
from tests.unit.config.test_checks import replaced


@functools.cache
def base() -> RunConfig:
    # The formulas of the papers are of a cross-entropy that keeps fp32 logits.
    changes = ["engine=zero1_bf16", "engine.cross_entropy=plain", "train.micro_batch_size=1"]
    return load_run_config(["model=gpt3_175b", *changes])


def changed(**changes: Any) -> RunConfig:
    config = base()
    for key, value in changes.items():
        config = replaced(config, key.replace("__", "."), value)
    return config


def layer(config: RunConfig) -> float:
    return layer_bytes(config.model, config.parallel, config.engine)


HIDDEN = 12288


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_layer_keeps_what_korthikanti_counts(tp: int) -> None:
    # Table 2, selective: 10 + 24/t, and 34/t with sequence parallelism. Attention's dropout mask is part of the s^2
    # term that SDPA never stores, so their 10 is 8 + 2 one-byte masks.
    assert layer(changed(parallel__tp=tp)) == pytest.approx(HIDDEN * (8 + 24 / tp))
    dropping = {"model__hidden_dropout": 0.1, "parallel__tp": tp}
    assert layer(changed(**dropping)) == pytest.approx(HIDDEN * (10 + 24 / tp))
    assert layer(changed(**dropping, parallel__sp=True)) == pytest.approx(HIDDEN * 34 / tp)


def test_fp32_keeps_twice_as_much() -> None:
    assert layer(changed(engine__precision="fp32")) == 2 * layer(base())


def test_recomputing_the_mlp_leaves_out_its_inside() -> None:
    selective = {"engine__recompute__granularity": "selective"}
    assert layer(changed(**selective, engine__recompute__modules=("mlp",))) == HIDDEN * (8 + 8)
    assert layer(changed(**selective, engine__recompute__modules=("core_attn",))) == layer(base())


@pytest.mark.parametrize(("rank", "number", "passes"), [(0, 64, 8), (5, 64, 3), (7, 64, 1), (0, 4, 4), (2, 1, 1)])
def test_1f1b_holds_one_micro_batch_for_each_stage_to_come(rank: int, number: int, passes: int) -> None:
    config = changed(parallel__pp=8)
    (stage,) = all_stages(config.model, config.parallel, 512)[rank : rank + 1]
    assert len(chunks_in_flight(stage.chunks, config.parallel, rank, number)) == passes


@pytest.mark.parametrize(("pp", "vp"), [(8, 3), (12, 4), (2, 2)])
def test_interleaving_adds_the_published_factor_of_activations(pp: int, vp: int) -> None:
    # Korthikanti et al. 2022, section 4.2.3: 1 + (p - 1) / (p m) times as many layers.
    config = changed(parallel__pp=pp, parallel__vp=vp)
    first = all_stages(config.model, config.parallel, 512)[0]
    layers = sum(chunk.num_layers for chunk in chunks_in_flight(first.chunks, config.parallel, 0, 16 * pp))
    assert layers == pytest.approx(96 * (1 + (pp - 1) / (pp * vp)))


def stage_bytes(rank: int, **changes: Any) -> int:
    config = changed(parallel__pp=8, parallel__tp=8, **changes)
    stage = all_stages(config.model, config.parallel, 512)[rank]
    return activation_bytes(config, stage, rank, 64, 512)


def test_full_recomputation_keeps_inputs_and_one_group_of_layers() -> None:
    full = {"engine__recompute__granularity": "full"}
    one_layer, an_input = 2048 * HIDDEN * (8 + 24 / 8), 2048 * HIDDEN * 2
    assert stage_bytes(0, **full) == 8 * 12 * an_input + one_layer
    assert stage_bytes(0, **full, engine__recompute__num_layers=4) == 8 * 3 * an_input + 4 * one_layer
    block = {**full, "engine__recompute__method": "block", "engine__recompute__num_layers": 5}
    assert stage_bytes(0, **block) == 8 * (5 * an_input + 7 * one_layer) + one_layer
    assert stage_bytes(0) == 8 * 12 * one_layer


def test_the_last_stage_adds_its_logits() -> None:
    rows = 512 * 2 // 8  # padded to 128 * tp = 1024
    head = 2048 * (2 * 2 * HIDDEN + rows * (2 + 4 + 4))
    assert stage_bytes(7) == 12 * 2048 * HIDDEN * (8 + 24 / 8) + head


def test_cross_entropy_in_place_keeps_the_logits_alone() -> None:
    config = changed(parallel__tp=8)
    (stage,) = all_stages(config.model, config.parallel, 1024)
    in_place = changed(parallel__tp=8, engine__cross_entropy="in_place")
    plain, least = (activation_bytes(each, stage, 0, 1, 1024) for each in (config, in_place))
    assert plain - least == config.model.seq_length * 1024 // 8 * 8, "in bf16: fp32 logits and their softmax"


def test_a_chunked_cross_entropy_keeps_no_more_than_a_block_of_logits() -> None:
    config = changed(engine__cross_entropy="chunked")
    (stage,) = all_stages(config.model, config.parallel, 2**17)
    (twice,) = all_stages(config.model, config.parallel, 2**18)
    found = [activation_bytes(config, each, 0, 1, vocab) for each, vocab in ((stage, 2**17), (twice, 2**18))]
    assert found[0] == found[1], "the vocabulary does not matter"
    logits = 2 * config.model.seq_length * 2**18
    assert found[0] < activation_bytes(changed(engine__cross_entropy="in_place"), twice, 0, 1, 2**18) - logits // 2

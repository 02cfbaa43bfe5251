"""The plan's bytes against what is published of ZeRO, and against each other where one must be the smaller."""

import functools
from typing import Any

import pytest

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.planner.memory import Modes, StageMemory, choose_modes, fullest_stage, gather_pieces, plan_memory
from pretrain.planner.memory_tables import hints
from pretrain.planner.passes.gradients import REDUCE_BUCKET_ELEMENTS
from pretrain.planner.shapes import all_stages, layer_tensors
from pretrain.planner.states import partitions_in_memory, shares
from tests.unit.config.test_checks import replaced

VOCAB = 8192
LEAST = Modes("per_micro_batch", "per_micro_batch")
MOST = Modes("per_step", "per_step")


@functools.cache
def base() -> RunConfig:
    return load_run_config(["model=gpt3_125m", "train.global_batch_size=64", "train.micro_batch_size=1"])


def changed(**changes: Any) -> RunConfig:
    config = base()
    for key, value in changes.items():
        config = replaced(config, key.replace("__", "."), value)
    return config


def engine(zero: int, precision: str, **more: Any) -> RunConfig:
    return changed(engine__zero_stage=zero, engine__precision=precision, **more)


def one(config: RunConfig, ranks: int, modes: Modes = LEAST) -> StageMemory:
    (memory,) = plan_memory(config, VOCAB, ranks, modes)
    return memory


def parameters_of(config: RunConfig) -> int:
    return sum(stage.num_parameters for stage in all_stages(config.model, config.parallel, VOCAB))


def model_states(memory: StageMemory) -> int:
    return memory.parameters + memory.gradients + memory.master_weights + memory.moments


# Bytes for each parameter, whole and divided by the data-parallel size.
STATES = [
    # Rajbhandari et al. 2020, figure 1, with 16-bit gradients: 16; 4 + 12/d; 2 + 14/d; 16/d.
    (0, "bf16", "same", 16, 0),
    (1, "bf16", "same", 4, 12),
    (2, "bf16", "same", 2, 14),
    (3, "fp16", "same", 0, 16),
    # Gradients in fp32: 2 more.
    (0, "bf16", "fp32", 18, 0),
    (1, "fp16", "fp32", 6, 12),
    (2, "bf16", "fp32", 2, 16),
    (3, "bf16", "fp32", 0, 18),
    # All in fp32: from stage 1 on DeepSpeed keeps a master copy beside the parameters.
    (0, "fp32", "fp32", 16, 0),
    (1, "fp32", "fp32", 8, 12),
    (2, "fp32", "same", 4, 16),
    (3, "fp32", "fp32", 0, 20),
]


def test_the_fullest_stage_is_found_up_to_a_limit() -> None:
    config = engine(1, "bf16", parallel__pp=4)
    stages = all_stages(config.model, config.parallel, VOCAB)
    peak = max(stage.peak for stage in plan_memory(config, VOCAB, 8, LEAST))
    assert [fullest_stage(config, VOCAB, 8, LEAST, stages, limit) for limit in (None, peak, peak - 1, 1)] == [
        *(peak, peak),
        *(None, None),
    ]


@pytest.mark.parametrize(("zero", "precision", "accumulate", "whole", "split"), STATES)
@pytest.mark.parametrize("dp", [1, 4, 64])
def test_bytes_of_each_zero_stage_are_those_published(
    zero: int, precision: str, accumulate: str, whole: int, split: int, dp: int
) -> None:
    config = engine(zero, precision, engine__grad_accum_dtype=accumulate)
    expected = (whole + split / dp) * parameters_of(config)
    assert model_states(one(config, dp)) == pytest.approx(expected, rel=1e-4)


def by_decay(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and "position" not in name


def test_shares_are_rounded_up_so_that_together_they_hold_all() -> None:
    config = changed(model__hidden_size=35, model__num_heads=5, model__ffn_hidden_size=61, model__num_layers=3)
    (stage,) = all_stages(config.model, config.parallel, 91)
    for dp in (1, 2, 3, 7):
        by_parameter = shares(stage, 3, dp, tied_apart=False, group=by_decay)
        assert all(0 <= share * dp - size < dp for share, size in zip(by_parameter, stage.sizes, strict=True))
        by_group = shares(stage, 1, dp, tied_apart=False, group=by_decay)
        assert len(by_group) == 2 and all(share % 2 == 0 for share in by_group)
        assert 0 <= sum(by_group) * dp - stage.num_parameters < 2 * 2 * dp


def test_a_tied_weight_of_several_stages_is_cut_alone() -> None:
    config = changed(parallel__pp=2)
    first, last = all_stages(config.model, config.parallel, VOCAB)
    table = -(-VOCAB * 768 // 8) // 2 * 2
    for stage in (first, last):
        parts = shares(stage, 1, 8, tied_apart=True, group=by_decay)
        assert table in parts and len(parts) == 3
        assert table not in shares(stage, 1, 8, tied_apart=False, group=by_decay)


def test_modes_per_step_add_a_whole_gradient_and_all_parameters() -> None:
    config = engine(3, "bf16")
    whole = parameters_of(config)
    least, most = one(config, 4), one(config, 4, MOST)
    assert least.full_gradients == 0 and most.full_gradients == 4 * whole
    assert most.gathered == 2 * whole and least.gathered == 0
    assert most.in_gather - most.stays_between_steps > 2 * whole and least.in_gather == 0
    assert most.in_backward - least.in_backward > whole
    assert model_states(least) == model_states(most)
    at_2 = one(engine(2, "bf16"), 4, MOST)
    assert at_2.gradients + at_2.full_gradients == 4 * whole
    same = engine(3, "bf16", engine__grad_accum_dtype="same")
    assert one(same, 4, MOST).full_gradients == 2 * whole


@pytest.mark.parametrize("zero", [0, 1])
def test_modes_change_nothing_below_the_stage_that_has_them(zero: int) -> None:
    assert one(engine(zero, "bf16"), 4, LEAST) == one(engine(zero, "bf16"), 4, MOST)


def test_the_update_needs_fp32_copies_but_no_activations() -> None:
    whole = parameters_of(base())
    for zero, kept, copied in ((0, 4, 0), (1, 4 / 8, 4 / 8), (2, 4 / 8, 0), (3, 0, 4 / 8)):  # 3: kept between steps
        memory = one(engine(zero, "bf16"), 8)
        low, high = (kept + 0.95 * copied) * whole, (kept + copied) * whole  # one optimizer group at a time
        assert low <= memory.in_update - memory.stays_between_steps <= 1.001 * high + 2**20
        assert memory.peak > memory.in_update


def test_a_hint_says_that_zero_1_partitions_nothing() -> None:
    for zero, ranks, has_hint in ((1, 1, True), (1, 2, False), (0, 1, False)):
        config = engine(zero, "bf16")
        found = hints(config, plan_memory(config, VOCAB, ranks, MOST), ranks)
        assert ["engine.zero_stage=0" in text for text in found] == [True] * has_hint


@pytest.mark.parametrize("place", ["none", "cpu", "nvme"])
def test_an_unfused_update_needs_another_fp32_copy(place: str) -> None:
    for zero in [3] if place == "nvme" else [0, 1, 2, 3] if place == "none" else [1, 2, 3]:
        fused, plain = (
            one(engine(zero, "bf16", engine__offload__optimizer=place, optim__fused=way), 4) for way in (True, False)
        )
        more = plain.in_update - fused.in_update if place == "none" else plain.host - fused.host
        assert 0.95 * fused.master_weights <= more <= fused.master_weights or place != "none"
        assert 0.95 * parameters_of(base()) <= more / (4 if zero == 0 else 1) <= 1.001 * parameters_of(base())


def test_gradients_stay_between_steps_at_stage_3_only() -> None:
    for zero in range(4):
        memory = one(engine(zero, "bf16"), 4)
        states = memory.parameters + memory.master_weights + memory.moments
        more = memory.gradients if zero == 3 else 0
        assert memory.stays_between_steps == states + more + memory.buffers <= memory.peak


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_offload_moves_the_optimizer_off_the_device(zero: int) -> None:
    there, here = engine(zero, "bf16", engine__offload__optimizer="cpu"), engine(zero, "bf16")
    offloaded, kept = one(there, 4), one(here, 4)
    assert offloaded.master_weights == offloaded.moments == 0 and offloaded.in_update < kept.in_update
    assert offloaded.host >= kept.master_weights + kept.moments
    assert offloaded.parameters == kept.parameters and offloaded.peak < kept.peak
    assert (offloaded.gradients == 0) == (zero == 3)


def test_nvme_holds_states_and_gradients_the_host_the_buffers() -> None:
    disk, kept = one(engine(3, "bf16", engine__offload__optimizer="nvme"), 4), one(engine(3, "bf16"), 4)
    assert disk.disk == kept.master_weights + kept.moments + kept.master_weights
    assert disk.host == 4 * kept.master_weights + kept.gradients, "a sub-group's worth: this model has one"
    assert disk.master_weights == disk.moments == disk.gradients == 0
    assert choose_modes(engine(3, "bf16", engine__offload__optimizer="nvme"), VOCAB, 4, 10**15) == Modes(
        "per_micro_batch", "per_step"
    )


def test_nvme_takes_parameters_except_small_or_gathered_ones() -> None:
    config = engine(3, "bf16", engine__offload__params="nvme")
    disk, kept = one(config, 1), one(engine(3, "bf16"), 1)
    assert disk.parameters == 0 and disk.master_weights == kept.master_weights
    small = kept.parameters - disk.disk
    assert 0 < small < 0.01 * kept.parameters, "norms and biases"
    count, largest = partitions_in_memory(config, all_stages(config.model, config.parallel, VOCAB)[0], 1)
    assert 0 < count <= 2 * layer_tensors(config.model, config.parallel) + 3
    assert disk.host == small + 2 * count * largest + kept.parameters, "and a sub-group's worth: this model has one"
    assert choose_modes(config, VOCAB, 1, 10**15) == Modes("per_step", "per_micro_batch")


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (4, 3)])
def test_model_parallelism_divides_the_model_states(tp: int, pp: int) -> None:
    whole = one(engine(1, "bf16"), 1)
    split = plan_memory(engine(1, "bf16", parallel__tp=tp, parallel__pp=pp), VOCAB, tp * pp, LEAST)
    assert len(split) == pp
    for stage in split:
        assert model_states(stage) < model_states(whole)
    assert tp * sum(model_states(stage) for stage in split) >= model_states(whole)


def test_the_bucket_is_the_one_that_deepspeed_is_given() -> None:
    config = base()
    given = deepspeed_config(config.engine, reduce_per_step=False, micro_batch_size=1, clip_grad_norm=1.0, dp=1)
    assert given["zero_optimization"]["reduce_bucket_size"] == REDUCE_BUCKET_ELEMENTS
    assert one(engine(3, "fp32"), 4).buffers == 4 * REDUCE_BUCKET_ELEMENTS
    assert one(engine(3, "bf16"), 4).buffers == 0, "sums in another precision are not copied into a bucket"


def test_a_stage_is_gathered_in_pieces_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.planner.memory.GATHER_ELEMENTS", 10)
    assert gather_pieces([4, 6, 1, 25, 3]) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert gather_pieces([25]) == [slice(0, 1)]


def peak_of(modes: Modes, config: RunConfig) -> int:
    return max(stage.peak for stage in plan_memory(config, VOCAB, 8, modes))


ORDER = [
    Modes("per_step", "per_step"),
    Modes("per_micro_batch", "per_step"),
    Modes("per_step", "per_micro_batch"),
    Modes("per_micro_batch", "per_micro_batch"),
]


@pytest.mark.parametrize("more", [{}, {"parallel__pp": 2}, {"engine__offload__optimizer": "cpu"}])
def test_auto_takes_the_first_modes_that_fit(more: dict[str, Any]) -> None:
    config = engine(3, "bf16", **more)
    for budget in (peak_of(modes, config) / 0.9 + room for modes in ORDER for room in (-1000, 1000)):
        fitting = [modes for modes in ORDER if peak_of(modes, config) <= 0.9 * int(budget)]
        assert choose_modes(config, VOCAB, 8, int(budget)) == (fitting[0] if fitting else ORDER[-1])
    assert choose_modes(config, VOCAB, 8, 10**12) == ORDER[0]


def test_auto_modes_use_least_memory_if_it_is_unknown_or_small() -> None:
    config = engine(3, "bf16")
    assert choose_modes(config, VOCAB, 8, None) == choose_modes(config, VOCAB, 8, 1) == LEAST


@pytest.mark.parametrize("mode", ["per_step", "per_micro_batch"])
def test_a_mode_that_was_asked_for_is_taken(mode: str) -> None:
    for budget in (None, 1, 10**12):
        assert choose_modes(engine(3, "bf16", engine__param_gather=mode), VOCAB, 8, budget).param_gather == mode
        assert choose_modes(engine(2, "bf16", engine__grad_reduction=mode), VOCAB, 8, budget).grad_reduction == mode


@pytest.mark.parametrize(("zero", "modes"), [(0, MOST), (1, MOST), (2, Modes("per_micro_batch", "per_step"))])
def test_below_stage_3_modes_say_what_the_stage_does(zero: int, modes: Modes) -> None:
    assert choose_modes(engine(zero, "bf16"), VOCAB, 8, None) == modes

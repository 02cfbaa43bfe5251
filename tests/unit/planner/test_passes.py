"""Passes keep and free what published formulas and schedules say; the tape counts as autograd does."""

import functools
from typing import Any

import pytest

from pretrain.config.load import load_run_config
from pretrain.config.parallel import Chunk
from pretrain.config.run import RunConfig
from pretrain.planner.memory import Modes, StageMemory, plan_memory
from pretrain.planner.passes.chunk import Passes, chunk_passes
from pretrain.planner.passes.ends import Tables
from pretrain.planner.passes.gradients import GradientKind
from pretrain.planner.passes.meter import Meter
from pretrain.planner.passes.schedule import run_step, schedule
from pretrain.planner.passes.sizes import sizes_of
from pretrain.planner.passes.tape import Tape
from tests.unit.config.test_checks import replaced

HIDDEN, TOKENS = 12288, 2048


@functools.cache
def base() -> RunConfig:
    changes = ["engine=zero1_bf16", "engine.cross_entropy=plain", "train.micro_batch_size=1"]
    return load_run_config(["model=gpt3_175b", *changes])


def changed(**changes: Any) -> RunConfig:
    config = base()
    for key, value in changes.items():
        config = replaced(config, key.replace("__", "."), value)
    return config


def passes(config: RunConfig, layers: int) -> Passes:
    """The passes of a chunk in the middle of a pipeline."""
    tables = Tables(columns=512, real=512, cross_entropy="plain", compiled=False, shared=False)
    chunk = Chunk(first=1, num_layers=layers, embedding=False, head=False)
    return chunk_passes(sizes_of(config), tables, config.engine.recompute, chunk, GradientKind(2, 4, gathers=False))


def layer(config: RunConfig) -> float:
    """Bytes for each token that one layer keeps."""
    return (passes(config, 4).forward.change - passes(config, 3).forward.change) / TOKENS


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_layer_keeps_what_korthikanti_counts(tp: int) -> None:
    # Table 2, selective: 10 + 24/t, and 34/t with sequence parallelism. Attention's dropout mask is part of the s^2
    # term that SDPA never stores, so their 10 is 8 + 2 one-byte masks. Statistics of norms and attention are less.
    few = pytest.approx
    assert layer(changed(parallel__tp=tp)) == few(HIDDEN * (8 + 24 / tp), rel=3e-3)
    dropping = {"model__hidden_dropout": 0.1, "parallel__tp": tp}
    assert layer(changed(**dropping)) == few(HIDDEN * (10 + 24 / tp), rel=3e-3)
    assert layer(changed(**dropping, parallel__sp=True)) == few(HIDDEN * 34 / tp, rel=3e-3)


def test_fp32_keeps_twice_as_much() -> None:
    assert layer(changed(engine__precision="fp32")) == pytest.approx(2 * layer(base()), rel=3e-3)


def test_recomputing_the_mlp_leaves_out_its_inside() -> None:
    selective = {"engine__recompute__granularity": "selective"}
    assert layer(changed(**selective, engine__recompute__modules=("mlp",))) == pytest.approx(HIDDEN * 16, rel=3e-3)
    both = layer(changed(**selective, engine__recompute__modules=("core_attn",)))
    assert both == pytest.approx(layer(base()), rel=3e-3)


def test_full_recomputation_keeps_inputs_alone() -> None:
    full = {"engine__recompute__granularity": "full"}
    assert layer(changed(**full)) == 2 * HIDDEN
    groups = passes(changed(**full, engine__recompute__num_layers=2), 4).forward.change
    assert groups == 2 * 2 * HIDDEN * TOKENS
    block = {**full, "engine__recompute__method": "block", "engine__recompute__num_layers": 1}
    kept = passes(changed(**block), 3).forward.change
    assert kept == pytest.approx(TOKENS * (2 * HIDDEN + 2 * layer(base())), rel=3e-3)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("model", ["gpt3_175b", "llama_8b"])
def test_a_backward_pass_frees_all_but_the_gradients(model: str, recompute: str) -> None:
    settings = "model.seq_length=128", "train.micro_batch_size=2", "engine=zero0_bf16"
    config = load_run_config([f"model={model}", *settings, f"engine.recompute.granularity={recompute}"])
    found = passes(config, 2)
    left = found.forward.change + found.backward.change
    assert left % 4 == 0 and left > 0, "gradients in fp32"
    assert found.forward.change + found.later.change == 0  # the gradients join those of the first micro-batch


def turns(pp: int, vp: int, rank: int, number: int) -> list[tuple[bool, int]]:
    return list(schedule(changed(parallel__pp=pp, parallel__vp=vp).parallel, rank, number))


def most_in_flight(pp: int, vp: int, rank: int, number: int) -> int:
    most = running = 0
    for is_backward, _ in turns(pp, vp, rank, number):
        running += -1 if is_backward else 1
        most = max(most, running)
    return most


@pytest.mark.parametrize(("rank", "number", "passes"), [(0, 64, 8), (5, 64, 3), (7, 64, 1), (0, 4, 4), (2, 1, 1)])
def test_1f1b_holds_one_micro_batch_for_each_stage_to_come(rank: int, number: int, passes: int) -> None:
    assert most_in_flight(8, 1, rank, number) == passes


@pytest.mark.parametrize(("pp", "vp"), [(8, 3), (12, 4), (2, 2)])
def test_interleaving_adds_the_published_factor_of_activations(pp: int, vp: int) -> None:
    # Korthikanti et al. 2022, section 4.2.3: 1 + (p - 1) / (p m) times as many layers, each chunk 1/m of a stage's.
    assert most_in_flight(pp, vp, 0, 16 * pp) / vp == pytest.approx(pp * (1 + (pp - 1) / (pp * vp)))


@pytest.mark.parametrize(("pp", "vp", "rank", "number"), [(4, 1, 1, 9), (4, 3, 2, 8), (1, 1, 0, 3), (2, 2, 1, 2)])
def test_each_chunk_runs_each_micro_batch_forward_then_backward(pp: int, vp: int, rank: int, number: int) -> None:
    found = turns(pp, vp, rank, number)
    for chunk in range(vp):
        own = [is_backward for is_backward, of in found if of == chunk]
        assert own.count(True) == own.count(False) == number
        assert all(own[:i].count(False) >= own[:i].count(True) for i in range(len(own)))


def test_later_micro_batches_do_not_count_beyond_the_first_few() -> None:
    found = passes(changed(parallel__pp=4), 2)
    parallel = changed(parallel__pp=4).parallel
    assert run_step([found], parallel, 1, 64).backward >= run_step([found], parallel, 1, 4).backward


def stage(**changes: Any) -> StageMemory:
    (memory,) = plan_memory(changed(model__num_layers=2, **changes), 50_257, 1, Modes("per_step", "per_step"))
    return memory


def test_cross_entropy_in_place_keeps_the_logits_alone() -> None:
    plain, least = stage(), stage(engine__cross_entropy="in_place")
    columns = 50_304
    assert plain.activations - least.activations == pytest.approx(TOKENS * (50_257 * 4 - columns * 2), rel=1e-2)


def test_two_gradients_of_a_tensor_are_summed_into_a_third() -> None:
    meter = Meter()
    tape = Tape(meter, records=True)
    start = tape.new(10)
    one, two = tape.op([start], 10), tape.op([start], 10, keeps=[start], kept_bytes=3)
    total = tape.add(one, two)
    tape.free(start, one, two)
    assert meter.now == 10 + 3 + 10, "kept for the second, and the result"
    total.gradient = tape.new(10).storage
    meter.begin()
    tape.backward()
    assert start.gradient is not None
    assert meter.now == 10 + 10, "the result and the gradient"
    assert meter.peak == 23 + 10 + 10, "the sum's gradient, and the one of the second operation"


def test_without_records_nothing_is_kept() -> None:
    meter = Meter()
    tape = Tape(meter, records=False)
    start = tape.new(10)
    result = tape.op([start], 5, keeps=[start], kept_bytes=3, scratch=7)
    tape.free(start)
    assert (meter.now, meter.peak) == (5, 22)
    tape.free(result)
    assert meter.now == 0

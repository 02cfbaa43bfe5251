"""The time of a step on a measured CPU."""

import dataclasses
from typing import Any

import pytest

from pretrain.config.load import load_run_config
from pretrain.planner.memory import Modes
from pretrain.planner.time.cpu_costs import Collective, CpuCosts, EngineCost, LayerCost, LossCost
from pretrain.planner.time.cpu_step import cpu_parts
from pretrain.planner.time.hardware import Hardware, load_hardware
from pretrain.planner.time.step import predict_step

MODES = Modes("per_step", "per_step")
PLAIN = ("tracking=off", "train.global_batch_size=8", "train.micro_batch_size=2", "tokenizer.vocab_size=1024")


def machine(**changes: Any) -> Hardware:
    costs = CpuCosts(
        source="here",
        threads=1,
        cores=2,
        layers=(LayerCost("gelu", "fp32", 400, 10, 4), LayerCost("swiglu", "fp32", 600, 20, 5)),
        losses=(LossCost("plain", "fp32", {"1048576": 1.0}), LossCost("in_place", "fp32", {"1048576": 2.0})),
        engine=tuple(EngineCost(stage, "fp32", 800, 300, 500, 2000 * (stage == 3), 3) for stage in range(4)),
        update_ns=0.5,
        table_ns=0.2,
        crowding={},
        collectives=tuple(
            Collective(kind, ranks, 100 * ranks, 1.0)
            for kind in ("all_reduce", "all_gather", "reduce_scatter", "send")
            for ranks in (2, 4)
        ),
    )
    return dataclasses.replace(load_hardware("cpu"), cpu=dataclasses.replace(costs, **changes))


def parts(world_size: int, *overrides: str, hardware: Hardware | None = None) -> dict[str, float]:
    config = load_run_config([*PLAIN, *overrides])
    step = predict_step(config, 1024, world_size, MODES, hardware or machine())
    assert step.seconds == pytest.approx(sum(step.parts.values()))
    return {**step.parts, "all": step.seconds}


def test_one_rank_sends_nothing() -> None:
    found = parts(1)
    assert found["tensor parallel"] == found["data parallel"] == 0
    assert abs(found["pipeline"]) < 1e-9 * sum(found.values())  # a difference of equal sums
    assert min(found[name] for name in ("matrix products", "attention", "elementwise", "optimizer", "host")) > 0


def test_two_ranks_on_two_cores_halve_the_passes() -> None:
    one, two = parts(1), parts(2)
    for name in ("matrix products", "attention", "elementwise"):
        assert two[name] == pytest.approx(one[name] / 2)
    assert two["data parallel"] > 0


def test_four_ranks_on_two_cores_gain_nothing() -> None:
    two, four = parts(2), parts(4)
    assert four["matrix products"] + four["pipeline"] == pytest.approx(two["matrix products"] + two["pipeline"])


def test_ranks_that_disturb_each_other_take_longer() -> None:
    crowded = machine(crowding={"1": 1.0, "2": 1.5})
    assert parts(2, hardware=crowded)["matrix products"] == pytest.approx(1.5 * parts(2)["matrix products"])


@pytest.mark.parametrize("how", ["parallel.tp=2", "parallel.pp=2"])
def test_model_parallel_ranks_share_the_work(how: str) -> None:
    one, two = parts(1), parts(2, how)
    assert two["matrix products"] == pytest.approx(one["matrix products"] / 2, rel=0.35), "the head is at one end"
    assert two["data parallel"] < 1e-3 and two["all"] < one["all"]
    waiting = "tensor parallel" if "tp" in how else "pipeline"
    assert two[waiting] > 0


def test_more_stages_than_cores_work_in_turns() -> None:
    four = parts(4, "parallel.pp=4", "model.num_layers=4")
    one = parts(1, "model.num_layers=4")
    assert four["all"] > 0.4 * one["all"], "two cores do the work of four stages"


@pytest.mark.parametrize("how", ["parallel.pp=4", "parallel.pp=2 parallel.tp=2", "parallel.tp=4", "parallel.pp=2"])
def test_no_part_of_a_step_on_shared_cores_is_negative(how: str) -> None:
    for crowding in ({}, {"1": 1.0, "2": 1.1, "4": 2.6}):
        found = parts(4, *how.split(), "model.num_layers=4", hardware=machine(crowding=crowding))
        assert min(found.values()) >= 0


def test_zero_3_adds_its_hooks_to_every_micro_batch() -> None:
    assert parts(1, "engine.zero_stage=3")["host"] - parts(1)["host"] == pytest.approx(4 * 2 * 2000e-6)


def test_full_recomputation_repeats_the_forward_pass() -> None:
    plain, again = parts(1), parts(1, "engine.recompute.granularity=full")
    assert 1.15 < again["matrix products"] / plain["matrix products"] < 1.34


def test_sequence_parallelism_sends_as_much_again() -> None:
    assert (
        parts(2, "parallel.tp=2", "parallel.sp=true")["tensor parallel"] > parts(2, "parallel.tp=2")["tensor parallel"]
    )


def test_a_loss_that_was_not_measured_costs_as_another() -> None:
    in_place = parts(1, "engine.cross_entropy=in_place")
    plain = parts(1)
    assert in_place["elementwise"] - plain["elementwise"] == pytest.approx(1e-9 * 8 * 256 * 1024)


def test_logits_that_are_not_stored_are_computed_again() -> None:
    config = load_run_config([*PLAIN])
    other: Any = "a way that stores no logits"
    chunked = dataclasses.replace(config, engine=dataclasses.replace(config.engine, cross_entropy=other))
    found = [cpu_parts(each, 1024, 1, MODES, machine())["matrix products"] for each in (config, chunked)]
    assert found[1] > found[0]

"""Laws of predicted step times."""

import dataclasses
import json
from functools import cache

import pytest

from pretrain.config.load import load_run_config
from pretrain.planner.memory import Modes
from pretrain.planner.time.hardware import load_hardware, preset_names
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.sensitivity import guesses_that_matter
from pretrain.planner.time.step import predict_step

PER_STEP = Modes("per_step", "per_step")
PER_MICRO_BATCH = Modes("per_micro_batch", "per_micro_batch")


@cache
def step(ranks: int, *words: str, hardware: str = "h100", modes: Modes = PER_STEP) -> StepTime:
    batch = ["model=gpt3_1.3b", "engine=zero1_bf16", "train.micro_batch_size=1", "train.global_batch_size=64"]
    return predict_step(load_run_config([*batch, *words]), 50257, ranks, modes, load_hardware(hardware))


@pytest.mark.parametrize("hardware", preset_names())
def test_every_machine_predicts_a_step_by_parts(hardware: str) -> None:
    found = step(8, hardware=hardware)
    assert found.low < found.seconds < found.high
    assert sum(found.parts.values()) == pytest.approx(found.seconds) and min(found.parts.values()) >= 0
    assert 0 < found.mfu["6n"] < found.mfu["6n_6lhs"] < found.mfu["6n_12lhs"] < 1
    assert json.loads(json.dumps(found.as_json(1e9, 2.5)))["cost"] == pytest.approx(2.5 * found.device_hours(1e9))


def test_time_grows_with_the_tokens_of_a_step() -> None:
    times = [step(8, f"train.global_batch_size={batch}").seconds for batch in (64, 128, 256, 1024)]
    assert times == sorted(times) and times[-1] > 10 * times[0]


def test_more_ranks_at_equal_work_communicate_no_less() -> None:
    shares = [step(ranks, f"train.global_batch_size={8 * ranks}").parts for ranks in (1, 2, 8, 16, 64, 512)]
    assert [part["data parallel"] for part in shares] == sorted(part["data parallel"] for part in shares)
    assert shares[0]["data parallel"] == 0 < shares[1]["data parallel"]
    assert len({part["matrix products"] for part in shares}) == 1


def test_gathering_for_each_micro_batch_costs_more() -> None:
    words = ("engine=zero3_bf16",)
    assert step(16, *words, modes=PER_MICRO_BATCH).parts["data parallel"] > 3 * step(16, *words).parts["data parallel"]


def test_recomputation_costs_a_forward_pass() -> None:
    plain, again = step(8), step(8, "engine.recompute.granularity=full")
    # A layer takes three products of equal size, and one of them again.
    assert 1.25 < again.parts["matrix products"] / plain.parts["matrix products"] < 1.34


def test_a_pipeline_costs_its_bubble() -> None:
    words = ("parallel.pp=4", "train.global_batch_size=64", "model.tie_embeddings=false")
    few, many = step(8, *words), step(8, *words, "parallel.vp=3")
    assert many.parts["pipeline"] < few.parts["pipeline"]


def test_a_faster_machine_is_faster() -> None:
    assert step(8, hardware="b200").seconds < step(8).seconds < step(8, hardware="a100_80").seconds


def test_guesses_are_ranked_by_their_effect() -> None:
    config = load_run_config(["model=gpt3_6.7b", "engine=zero1_bf16", "train.global_batch_size=512"])
    guesses = guesses_that_matter(config, 50257, 64, PER_STEP, load_hardware("h100"))
    assert [guess.effect for guess in guesses] == sorted((guess.effect for guess in guesses), reverse=True)
    assert guesses[0].name == "sustained_share" and 0.03 < guesses[0].effect < 0.12


def test_one_network_card_a_ring_is_slower() -> None:
    config = load_run_config(["model=gpt3_6.7b", "engine=zero3_bf16", "train.global_batch_size=512"])
    h100 = load_hardware("h100")
    one = dataclasses.replace(h100, nics_per_ring=dataclasses.replace(h100.nics_per_ring, value=1.0))
    fast, slow = (predict_step(config, 50257, 64, PER_MICRO_BATCH, machine) for machine in (h100, one))
    assert slow.parts["data parallel"] > 2 * fast.parts["data parallel"]

"""`auto` on a known machine: the fastest of what fits."""

import pytest

from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.planner.choice import fitting_modes, machine_of, micro_batch_sizes, modes_of, rounded_seconds, sized
from pretrain.planner.memory import HEADROOM, choose_modes
from pretrain.planner.micro_batch import with_micro_batch
from pretrain.planner.shapes import all_stages
from pretrain.planner.time.hardware import load_hardware
from pretrain.planner.time.step import predict_step

H100, VOCAB, GIB = load_hardware("h100"), 50257, 2**30


def config_of(*words: str) -> RunConfig:
    base = ("model=gpt3_1.3b", "engine=zero3_bf16", "train.micro_batch_size=auto", "train.global_batch_size=64")
    return load_run_config([*base, *words])


@pytest.mark.parametrize("gib", [20, 40, 80])
@pytest.mark.parametrize("words", [(), ("engine.zero_stage=2",), ("parallel.pp=2", "parallel.vp=2")])
def test_auto_takes_the_fastest_that_fits(gib: int, words: tuple[str, ...]) -> None:
    config = config_of(*words)
    chosen = sized(config, VOCAB, 8, gib * GIB, H100)
    modes = modes_of(chosen, VOCAB, 8, gib * GIB, H100)
    times = {}
    for size in micro_batch_sizes(config, 8):
        tried = load_run_config([*WORDS, *words, f"train.micro_batch_size={size}"])
        for option, _ in fitting_modes(tried, VOCAB, 8, gib * GIB, all_stages(tried.model, tried.parallel, VOCAB)):
            times[size, option] = rounded_seconds(predict_step(tried, VOCAB, 8, option, H100))
    assert times[chosen.train.micro_batch_size, modes] == min(times.values())


WORDS = ("model=gpt3_1.3b", "engine=zero3_bf16", "train.global_batch_size=64")


@pytest.mark.parametrize("gib", [20, 80])
def test_without_a_machine_the_rule_of_memory_holds(gib: int) -> None:
    config = config_of()
    assert machine_of(config) is None
    plain = with_micro_batch(config, VOCAB, 8, gib * GIB)
    assert sized(config, VOCAB, 8, gib * GIB, None) == plain
    assert modes_of(plain, VOCAB, 8, gib * GIB, None) == choose_modes(plain, VOCAB, 8, gib * GIB)


def test_a_number_stays_and_nothing_that_fits_is_an_error() -> None:
    config = config_of("train.micro_batch_size=4")
    assert sized(config, VOCAB, 8, GIB, H100) is config
    assert modes_of(config, VOCAB, 8, GIB, H100) == choose_modes(config, VOCAB, 8, GIB)
    with pytest.raises(ConfigError, match="one sample at once"):
        sized(config_of(), VOCAB, 8, GIB, H100)


def test_a_size_that_fits_is_found_above_one_that_does_not() -> None:
    """A single micro-batch in a step needs no sum of gradients beside them."""
    small = ("model.num_layers=4", "engine.zero_stage=1", "parallel.tp=2", "train.global_batch_size=4")
    config = config_of(*small)
    peaks = []
    for size in (1, 2):
        tried = load_run_config([*WORDS, *small, f"train.micro_batch_size={size}"])
        stages = all_stages(tried.model, tried.parallel, VOCAB)
        peaks.append(min(peak for _, peak in fitting_modes(tried, VOCAB, 4, None, stages)))
    assert peaks[1] < peaks[0]
    budget = int((peaks[0] + peaks[1]) / 2 / HEADROOM)
    assert sized(config, VOCAB, 4, budget, H100).train.micro_batch_size == 2


def test_cluster_hardware_names_the_machine() -> None:
    assert machine_of(config_of("cluster.hardware=h100")) == H100
    with pytest.raises(ConfigError, match="not a known machine"):
        machine_of(config_of("cluster.hardware=nothing"))

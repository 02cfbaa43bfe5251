"""`train.micro_batch_size=auto`."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.checks import check_run
from pretrain.config.derived import with_micro_batch_size
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.planner.memory import HEADROOM, choose_modes, plan_memory
from pretrain.planner.micro_batch import ENOUGH_TOKENS, FILLED_PIPELINE, with_micro_batch
from tests.unit.config.test_checks import replaced

GIB = 2**30
VOCAB = 50_257


@functools.cache
def asked(*overrides: str) -> RunConfig:
    return load_run_config(["model=gpt3_1.3b", "engine=zero1_bf16", "train.micro_batch_size=auto", *overrides])


def peak(config: RunConfig, world_size: int, budget: int) -> int:
    modes = choose_modes(config, VOCAB, world_size, budget)
    return max(stage.peak for stage in plan_memory(config, VOCAB, world_size, modes))


def chosen(config: RunConfig, world_size: int, gib: float) -> int:
    return with_micro_batch(config, VOCAB, world_size, int(gib * GIB)).train.micro_batch_size


def test_a_number_that_is_given_stays() -> None:
    config = asked("train.micro_batch_size=3")
    assert with_micro_batch(config, VOCAB, 1, 1) is config


@given(
    batch=st.integers(1, 512), dp=st.integers(1, 8), gib=st.floats(24, 200), length=st.sampled_from([512, 2048, 8192])
)
def test_it_is_the_largest_useful_divisor_that_fits(batch: int, dp: int, gib: float, length: int) -> None:
    config = replaced(replaced(asked(), "train.global_batch_size", batch * dp), "model.seq_length", length)
    budget = int(gib * GIB)
    fitting = [
        size
        for size in range(1, batch + 1)
        if batch % size == 0
        and (size == 1 or (size - 1) * length < ENOUGH_TOKENS)
        and peak(with_micro_batch_size(config, size), dp, budget) <= HEADROOM * budget
    ]
    if fitting:
        sized = with_micro_batch(config, VOCAB, dp, budget)
        assert sized.train.micro_batch_size == max(fitting)
        check_run(sized, dp)
    else:
        with pytest.raises(ConfigError, match="one sample at once is planned to take"):
            with_micro_batch(config, VOCAB, dp, budget)


def test_more_memory_never_gives_fewer_samples() -> None:
    config = asked("train.global_batch_size=64", "model.seq_length=512")
    sizes = [chosen(config, 2, gib) for gib in range(24, 141, 4)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_a_pipeline_stays_filled_where_the_batch_allows_it() -> None:
    of_four = asked("train.global_batch_size=64", "parallel.pp=4", "model.seq_length=128")
    assert 64 // chosen(of_four, 4, 80) == FILLED_PIPELINE * 4
    assert chosen(asked("train.global_batch_size=2", "parallel.pp=4", "model.seq_length=128"), 4, 80) == 1


def test_interleaved_stages_get_whole_turns() -> None:
    config = asked("train.global_batch_size=36", "parallel.pp=2", "parallel.vp=2", "model.seq_length=128")
    size = chosen(config, 2, 80)
    assert size > 1
    check_run(with_micro_batch_size(config, size), 2)


def test_the_rules_hold_before_the_number_is_known() -> None:
    config = asked("train.global_batch_size=7")
    assert config.train.micro_batch_size == "auto"
    check_run(config, 1)
    with pytest.raises(ConfigError, match="must be a multiple of"):
        check_run(config, 2)

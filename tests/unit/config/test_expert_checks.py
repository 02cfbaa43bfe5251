"""A model with experts that cannot be built or split as asked is refused, with what is legal near it."""

import pytest

from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config

EXPERTS = ("model=tiny_experts", "train.global_batch_size=48", "train.micro_batch_size=1")


def refusal(world_size, *overrides):
    with pytest.raises(ConfigError) as error:
        check_run(load_run_config([*EXPERTS, *overrides]), world_size)
    return str(error.value)


@pytest.mark.parametrize(
    ("world_size", "overrides", "words"),
    [
        (1, ["model.experts.topk=9"], "model.experts.topk=9: must be at most model.experts.count=8"),
        (1, ["model.bias=true"], "model.bias=true: experts have no biases"),
        (1, ["model.experts.dense_layers=2"], "leaves none of the model.num_layers=2 layers with experts"),
        (1, ["model.experts.ffn_hidden_size=190"], "must be a multiple of 8"),
        (2, ["parallel.tp=2"], "parallel.sp=false: with experts, tensor-parallel ranks divide the tokens"),
        (3, ["parallel.ep=3"], "parallel.ep=3: must divide model.experts.count=8"),
        (2, ["parallel.ep=4"], "ep * etp = 4 must divide the 2 ranks of a pipeline stage"),
        (5, ["parallel.etp=5", "train.global_batch_size=5"], "parallel.etp=5: must leave each rank a multiple of 8"),
        (2, ["parallel.ep=2", "model.experts.count=0"], "parallel.ep=2: the model has no experts"),
        (1, ["engine.compile=layers"], "experts get other numbers of tokens"),
        (1, ["model.experts.count=-1"], "model.experts.count=-1: must not be negative"),
        (
            2,
            ["parallel.ep=2", "engine.zero_stage=2", "engine.precision=bf16"],
            "engine.zero_stage=2: DeepSpeed sums the gradients of experts in 16 bits",
        ),
    ],
)
def test_an_illegal_setting_is_refused(world_size, overrides, words):
    assert words in refusal(world_size, *overrides)


def test_the_nearest_layouts_are_legal_with_experts():
    message = refusal(2, "parallel.ep=4")
    assert "parallel.tp=1 parallel.pp=1 parallel.vp=1 parallel.ep=2   (data-parallel size 2)" in message


@pytest.mark.parametrize("overrides", [[], ["parallel.ep=4"], ["parallel.tp=2", "parallel.sp=true", "parallel.etp=2"]])
def test_a_legal_split_passes(overrides):
    check_run(load_run_config([*EXPERTS, *overrides]), 4)

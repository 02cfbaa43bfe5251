"""A key that is set on the command line and changes nothing is reported with the reason."""

import logging

import pytest

from pretrain.config.describe import keys_of
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.config.unused import rules

UNUSED = [
    (["parallel.sp=true"], "parallel.sp=true has no effect: it needs parallel.tp above 1"),
    (["model.rope_base=5e5"], "model.rope_base=5e5 has no effect: it needs model.position=rope"),
    (
        ["model=tiny_llama", "model.rope_scaling.factor=4"],
        "model.rope_scaling.factor=4 has no effect: it needs model.rope_scaling.kind=llama3 or model.rope_scaling.kind",
    ),
    (["engine.loss_scale.window=9"], "engine.loss_scale.window=9 has no effect: it needs engine.precision=fp16"),
    (
        ["engine.recompute.modules=[mlp]"],
        "engine.recompute.modules=[mlp] has no effect: it needs granularity=selective",
    ),
    (["engine.recompute.num_layers=2"], "engine.recompute.num_layers=2 has no effect: it needs granularity=full"),
    (["lr_schedule.decay_fraction=0.1"], "lr_schedule.decay_fraction=0.1 has no effect: it needs lr_schedule=wsd"),
    (["data.near_dedup.rows=5"], "data.near_dedup.rows=5 has no effect: it needs data.dedup=near"),
    (["tokenizer.kind=bpe", "tokenizer.path=x"], "tokenizer.kind=bpe has no effect: tokenizer.path gives a tokenizer"),
    (["checkpoint.local.keep_last=3"], "checkpoint.local.keep_last=3 has no effect: it needs checkpoint.local.path"),
    (["prepare.slurm.jobs=3"], "prepare.slurm.jobs=3 has no effect: it needs prepare.executor=slurm"),
    (["tracking=off", "tracking.wandb_project=x"], "tracking.wandb_project=x has no effect: tracking.wandb is off"),
]
USED = [
    ["parallel.sp=true", "parallel.tp=2"],
    ["parallel.sp=false"],
    ["parallel=tp8", "parallel.tp=1"],
    ["model=tiny_llama", "model.rope_base=5e5"],
    ["engine.precision=fp16", "engine.loss_scale.window=9"],
    ["lr_schedule=wsd", "lr_schedule.decay_fraction=0.1"],
    ["data.dedup=near", "data.near_dedup.rows=5"],
]


def warnings(caplog: pytest.LogCaptureFixture, overrides: list[str]) -> list[str]:
    with caplog.at_level(logging.WARNING):
        load_run_config(overrides)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("overrides", "words"), UNUSED)
def test_a_typed_key_without_effect_is_reported_with_the_reason(caplog, overrides: list[str], words: str) -> None:
    (line,) = warnings(caplog, overrides)
    assert line.startswith(words)


@pytest.mark.parametrize("overrides", USED)
def test_a_key_with_an_effect_or_of_a_preset_is_not(caplog, overrides: list[str]) -> None:
    assert not warnings(caplog, overrides)


def test_rules_name_keys_that_exist() -> None:
    assert {name for name, _, _ in rules(load_run_config([]))} <= {key.name for key in keys_of(RunConfig)}

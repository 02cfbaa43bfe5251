"""Each rule of a legal run, by its message."""

import dataclasses
import functools
from typing import Any

import pytest

from data_pipeline.config import MixturePhase
from data_pipeline.config_text import written
from pretrain.config.checks import check_prepare, check_run
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.config.model import RopeScaling
from pretrain.config.run import RunConfig


def replaced(config: Any, key: str, value: object) -> Any:
    """`config` with the value at a dotted key."""
    first, _, rest = key.partition(".")
    return dataclasses.replace(config, **{first: replaced(getattr(config, first), rest, value) if rest else value})


@functools.cache
def default_run() -> RunConfig:
    return load_run_config(["train.global_batch_size=16", "train.micro_batch_size=8"])


def changed(**changes: object) -> RunConfig:
    """The default run with `section__name=value` changes."""
    config = default_run()
    for key, value in changes.items():
        config = replaced(config, key.replace("__", "."), value)
    return config


RULES: list[tuple[dict[str, object], int, str]] = [
    ({"run__name": ""}, 1, "run.name='': names no folder of the run's own\n  hint: give it a name"),
    ({"run__dir": " "}, 1, "run.dir=' ': names no folder of the run's own\n  hint: give it a name"),
    (
        {"model__num_heads": 5},
        1,
        "model.num_heads=5: does not divide model.hidden_size=128\n  hint: choose 2, 4 or 8, or give model.head_dim",
    ),
    (
        {"model__num_heads": 8, "model__num_query_groups": 3},
        1,
        "model.num_query_groups=3: does not divide model.num_heads=8\n  hint: choose 1, 2, 4 or 8",
    ),
    (
        {"model__position": "rope", "model__head_dim": 15},
        1,
        "model.head_dim=15: must be even, because rotary embeddings rotate pairs of dimensions",
    ),
    (
        {"model__rope_scaling": RopeScaling(kind="yarn", original_length=8)},
        1,
        "model.rope_scaling.kind=yarn: needs model.position=rope\n  hint: set model.rope_scaling.kind=none",
    ),
    (
        {"model__position": "rope", "model__rope_scaling": RopeScaling(kind="yarn", factor=2.0)},
        1,
        "model.rope_scaling.original_length=null: model.rope_scaling.kind=yarn needs the context length before "
        "the scaling\n  hint: give the seq_length that the weights were trained with",
    ),
    (
        {
            "model__position": "rope",
            "model__rope_scaling": RopeScaling(kind="llama3", original_length=8, low_freq_factor=5.0),
        },
        1,
        "model.rope_scaling.low_freq_factor=5.0: must be less than model.rope_scaling.high_freq_factor=4",
    ),
    (
        {"train__global_batch_size": 20},
        1,
        "train.global_batch_size=20: must be a multiple of train.micro_batch_size=8 times the data-parallel size 1, "
        "which is 8\n  hint: choose 16 or 24",
    ),
    (
        {"train__global_batch_size": 16},
        3,
        "train.global_batch_size=16: must be a multiple of train.micro_batch_size=8 times the data-parallel size 3, "
        "which is 24\n  hint: choose 24",
    ),
    (
        {"train__max_steps": None},
        1,
        "train.max_steps=null, train.max_tokens=null: give one of them\n  hint: set the other to null",
    ),
    (
        {"train__max_tokens": 9},
        1,
        "train.max_steps=1000, train.max_tokens=9: give one of them\n  hint: set the other to null",
    ),
    (
        {"lr_schedule__warmup_steps": 5, "lr_schedule__warmup_tokens": 9},
        1,
        "lr_schedule.warmup_steps=5, lr_schedule.warmup_tokens=9: give one of them\n  hint: set the other to null",
    ),
    (
        {"lr_schedule__warmup_steps": 1001},
        1,
        "lr_schedule.warmup_steps=1001: is longer than the whole run of 1000 steps\n"
        "  hint: shorten the warmup or lengthen "
        "the run",
    ),
    (
        {"train__max_steps": None, "train__max_tokens": 9000, "lr_schedule__warmup_tokens": 9001},
        1,
        "lr_schedule.warmup_tokens=9001: is longer than the whole run of 9000 tokens\n  hint: shorten the warmup or "
        "lengthen the run",
    ),
    *(
        (
            {"profile__steps": steps},
            1,
            f"profile.steps={written(steps)}: must be a first and a last step, counted from 1\n"
            "  hint: write it as in [10,12]",
        )
        for steps in ((3,), (1, 2, 3), (3, 2), (0, 2))
    ),
    (
        {"profile__steps": (1000, 1001)},
        1,
        "profile.steps=[1000,1001]: the run ends with step 1000\n  hint: end at 1000 or before, or lengthen the run",
    ),
    (
        {"engine__loss_scale__initial": 1000},
        1,
        "engine.loss_scale.initial=1000: must be a power of two\n  hint: choose 65536",
    ),
    (
        {"engine__loss_scale__initial": 0.5},
        1,
        "engine.loss_scale.initial=0.5: must be a power of two\n  hint: choose 65536",
    ),
    (
        {"engine__recompute__granularity": "selective", "engine__recompute__modules": ()},
        1,
        "engine.recompute.modules=[]: engine.recompute.granularity=selective needs at least one\n"
        "  hint: choose [core_attn], "
        "[mlp] or both",
    ),
    (
        {"engine__recompute__granularity": "full", "engine__recompute__num_layers": 2, "model__num_layers": 3},
        1,
        "engine.recompute.num_layers=2: engine.recompute.method=uniform: must divide the layers of each chunk, 3\n"
        "  hint: "
        "choose 1 or 3",
    ),
    (
        {
            "engine__recompute__granularity": "full",
            "engine__recompute__num_layers": 3,
            "model__num_layers": 10,
            "parallel__pp": 2,
            "parallel__pp_layout": "Ettt|t*7L",
        },
        2,
        "engine.recompute.num_layers=3: engine.recompute.method=uniform: must divide the layers of each chunk, 3 and "
        "7\n  hint: choose 1",
    ),
    (
        {
            "engine__recompute__granularity": "full",
            "engine__recompute__method": "block",
            "engine__recompute__num_layers": 2,
            "parallel__pp": 2,
        },
        2,
        "engine.recompute.num_layers=2: engine.recompute.method=block: is more than any chunk has layers\n"
        "  hint: choose at "
        "most 1",
    ),
    (
        {"engine__grad_reduction": "per_micro_batch"},
        1,
        "engine.grad_reduction=per_micro_batch: engine.zero_stage=1 holds whole gradients and reduces them once per "
        "step\n  hint: set it to auto, or engine.zero_stage to 2",
    ),
    *(
        (
            {"engine__param_gather": mode, "engine__zero_stage": 2},
            1,
            f"engine.param_gather={mode}: engine.zero_stage=2 holds whole parameters: there is nothing to gather\n"
            "  hint: set "
            "it to auto, or engine.zero_stage=3",
        )
        for mode in ("per_step", "per_micro_batch")
    ),
    (
        {"engine__offload__optimizer": "cpu", "engine__zero_stage": 0},
        1,
        "engine.offload.optimizer=cpu: needs engine.zero_stage=1 or above; the stage is 0\n"
        "  hint: set engine.zero_stage=1 "
        "or above, or engine.offload.optimizer=none",
    ),
    (
        {"engine__offload__params": "cpu", "engine__zero_stage": 2},
        1,
        "engine.offload.params=cpu: needs engine.zero_stage=3; the stage is 2\n  hint: set engine.zero_stage=3, or "
        "engine.offload.params=none",
    ),
    (
        {"data__mixture": {"web": 0.7, "code": -1.0}},
        1,
        "data.mixture={web: 0.7, code: -1.0}: weights must not be negative",
    ),
    (
        {"data__mixture": {"web": 0.0}},
        1,
        "data.mixture={web: 0.0}: at least one weight must be greater than 0",
    ),
    (
        {"data__mixture": {"web": 1.0}, "data__mixture_later": (MixturePhase(after_tokens=5, weights={"books": 1.0}),)},
        1,
        "data.mixture_later[0].weights=books: is not in data.mixture\n"
        "  hint: name web; with weight 0 one may begin later",
    ),
    (
        {
            "data__mixture": {"web": 1.0},
            "data__mixture_later": (
                MixturePhase(after_tokens=5, weights={"web": 1.0}),
                MixturePhase(after_tokens=5, weights={"web": 1.0}),
            ),
        },
        1,
        "data.mixture_later=[5,5]: after_tokens must be above 0 and grow from phase to phase; no two may begin "
        "at the same sample of 256 tokens",
    ),
    (
        {
            "data__mixture": {"web": 1.0},
            "data__mixture_later": (
                MixturePhase(after_tokens=513, weights={"web": 1.0}),
                MixturePhase(after_tokens=768, weights={"web": 1.0}),
            ),
        },
        1,
        "data.mixture_later=[513,768]: after_tokens must be above 0 and grow from phase to phase; no two may begin "
        "at the same sample of 256 tokens",
    ),
    (
        {"data__mixture": {"web": 1e308, "code": 1e308}},
        1,
        "data.mixture={web: 1e+308, code: 1e+308}: must have a finite sum\n"
        "  hint: divide all weights by one number: only "
        "ratios count",
    ),
    (
        {"data__mixture": {"web": 1.0, "code": 9e-7}},
        1,
        "data.mixture.code=9e-07: is less than 9.5e-07 of all weights, shares are kept to no finer\n"
        "  hint: raise it, or set "
        "it to 0",
    ),
    (
        {"data__mixture": {"web": 1.0}, "data__mixture_max_epochs": {"books": 2.0}},
        1,
        "data.mixture_max_epochs=books: is not in data.mixture\n  hint: name web",
    ),
    (
        {"data__mixture": {"web": 1.0}, "data__mixture_max_epochs": {"web": 0.0}},
        1,
        "data.mixture_max_epochs.web=0.0: must be greater than 0",
    ),
    (
        {"data__mixture_max_epochs": {"web": 2.0}},
        1,
        "data.mixture_max_epochs={web: 2.0}: needs data.mixture\n  hint: set that too",
    ),
    (
        {"engine__offload__optimizer": "nvme", "engine__zero_stage": 2, "engine__offload__nvme_path": "/disk"},
        1,
        "engine.offload.optimizer=nvme: needs engine.zero_stage=3; the stage is 2\n  hint: set engine.zero_stage=3, or "
        "engine.offload.optimizer=none",
    ),
    (
        {"engine__offload__optimizer": "nvme", "engine__zero_stage": 3},
        1,
        "engine.offload.nvme_path=null: nvme in engine.offload needs a folder on a disk of each node\n  hint: set it, "
        "or cpu for nvme",
    ),
    (
        {
            "engine__offload__params": "nvme",
            "engine__zero_stage": 3,
            "engine__offload__nvme_path": "/disk",
            "engine__param_gather": "per_step",
        },
        1,
        "engine.param_gather=per_step: engine.offload.params=nvme needs parameters gathered for each micro-batch\n"
        "  hint: set "
        "it to auto, or engine.offload.params=cpu",
    ),
    (
        {
            "engine__offload__optimizer": "nvme",
            "engine__zero_stage": 3,
            "engine__offload__nvme_path": "/disk",
            "engine__grad_reduction": "per_step",
        },
        1,
        "engine.grad_reduction=per_step: engine.offload.optimizer=nvme needs gradients reduced after each "
        "micro-batch\n  hint: set it to auto, or engine.offload.optimizer=cpu",
    ),
]


@pytest.mark.parametrize(("changes", "ranks", "message"), RULES, ids=[" ".join(rule[0]) for rule in RULES])
def test_a_broken_rule_is_reported_with_a_hint(changes: dict[str, object], ranks: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(changed(**changes), world_size=ranks)
    assert str(caught.value) == message


LEGAL: list[tuple[dict[str, object], int]] = [
    ({}, 2),
    ({"model__num_heads": 5, "model__head_dim": 32}, 1),
    ({"model__num_query_groups": 1}, 1),
    ({"train__max_steps": None, "train__max_tokens": 1}, 1),
    ({"profile__steps": (1000, 1000)}, 1),
    ({"lr_schedule__warmup_steps": 1000}, 1),
    ({"lr_schedule__warmup_steps": 0}, 1),
    ({"train__max_steps": None, "train__max_tokens": 9000, "lr_schedule__warmup_tokens": 9000}, 1),
    ({"optim__clip_grad_norm": 0.0, "optim__weight_decay": 0.0}, 1),
    ({"engine__loss_scale__initial": 1.0}, 1),
    ({"engine__recompute__modules": ()}, 1),
    ({"engine__recompute__num_layers": 99}, 1),
    ({"engine__recompute__granularity": "full", "engine__recompute__num_layers": 2}, 1),
    *(({"engine__zero_stage": stage, "engine__grad_reduction": "per_step"}, 1) for stage in range(4)),
    ({"engine__zero_stage": 2, "engine__grad_reduction": "per_micro_batch"}, 1),
    ({"engine__zero_stage": 3, "engine__param_gather": "per_micro_batch"}, 1),
    ({"engine__zero_stage": 1, "engine__offload__optimizer": "cpu"}, 1),
    ({"engine__zero_stage": 2, "engine__offload__optimizer": "cpu", "engine__grad_reduction": "per_step"}, 1),
    ({"engine__zero_stage": 3, "engine__offload__params": "cpu"}, 1),
]


@pytest.mark.parametrize(("changes", "ranks"), LEGAL)
def test_boundary_values_of_each_rule_are_legal(changes: dict[str, object], ranks: int) -> None:
    check_run(changed(**changes), world_size=ranks)


def test_a_member_of_a_shard_fits_the_memory() -> None:
    check_prepare(changed(model__seq_length=(1 << 18) - 1, data__samples_per_member=1 << 10))
    with pytest.raises(ConfigError) as caught:
        check_prepare(changed(model__seq_length=(1 << 18) - 1, data__samples_per_member=10**12))
    assert str(caught.value) == (
        "data.samples_per_member=1000000000000: makes tar members of more than 1024 MiB with model.seq_length=262143\n"
        "  hint: "
        "choose at most 1024"
    )


def test_all_broken_rules_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(
            changed(model__num_heads=5, train__global_batch_size=20, optim__lr=-1.0, train__max_tokens=9),
            world_size=1,
        )
    reported = [problem.key for problem in caught.value.problems]
    assert reported == ["optim.lr", "model.num_heads", "train.global_batch_size", "train.max_steps, train.max_tokens"]


@pytest.mark.parametrize(
    ("changes", "ranks", "rule", "hint"),
    [
        (
            {"parallel__cp": 3},
            3,
            "parallel.cp=3: 2 * cp = 6 must divide model.seq_length=256",
            "choose 1, 2, 4 or 8",
        ),
        (
            {"parallel__cp": 2, "parallel__tp": 2, "parallel__sp": True, "model__seq_length": 12},
            4,
            "parallel.cp=2: 2 * cp * tp = 8 must divide model.seq_length=12",
            "choose 1 or 3",
        ),
        (
            {"parallel__cp": 4},
            6,
            "parallel.cp=4, parallel.pp=1: tp * cp * pp = 4 must divide the number of ranks, which is 6",
            "make tp * cp * pp 2, 3 or 6, or start 8 ranks",
        ),
    ],
)
def test_samples_that_cannot_be_shared_are_refused(
    changes: dict[str, object], ranks: int, rule: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(changed(**changes), world_size=ranks)
    assert rule in str(caught.value) and f"hint: {hint}" in str(caught.value)


def test_near_layouts_keep_sharing_samples_where_they_can() -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(changed(parallel__cp=2, parallel__tp=3), world_size=8)
    assert "parallel.tp=2 parallel.pp=1 parallel.vp=1 parallel.cp=2   (data-parallel size 2)" in str(caught.value)

"""A resumed run: safe keys pass, unsafe ones by name only, the model's shape never; and what changed stays known."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.config.changes import NOT_OF_THE_RUN, SHAPE, Change, changes_between, refusal
from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError, RunError
from pretrain.config.load import load_run_config, read_run_config, record_keys, to_yaml
from pretrain.config.model import RopeScaling
from pretrain.config.optim import MuonConfig, OptimConfig
from pretrain.config.records import flatten
from pretrain.config.run import RunConfig
from pretrain.run.config_history import CHANGES_FILE, CONFIG_FILE, check_same_config, record_config
from pretrain.training.data import check_same_data


def leaves() -> set[str]:
    return set(flatten(yaml.safe_load(to_yaml(load_run_config([])))))


def kind(key: str) -> str:
    return Change(key, 1, 2).kind


def test_every_key_is_of_the_kind_that_is_promised() -> None:
    unsafe = {key for key in leaves() if kind(key) == "unsafe"} - NOT_OF_THE_RUN
    assert unsafe == {
        *(
            f"optim.{field.name}"
            for field in dataclasses.fields(OptimConfig)
            if field.name not in ("fused", "name", "muon")
        ),
        *(f"optim.muon.{field.name}" for field in dataclasses.fields(MuonConfig)),
        *(f"lr_schedule.{field.name}" for field in dataclasses.fields(load_run_config([]).lr_schedule)),
        *(f"model.experts.{name}" for name in ("sequence_loss", "z_loss", "bias_rate")),
        *("run.seed", "run.init_from", "run.branch_from", "train.global_batch_size", "data.document_mask"),
        *("model.hidden_dropout", "model.attention_dropout", "model.init_std", "model.norm_eps", "model.rope_base"),
        "model.vocab_multiple_of",
        *(f"model.rope_scaling.{field.name}" for field in dataclasses.fields(RopeScaling)),
    }
    assert set(leaves()) >= SHAPE
    for key in ("train.max_steps", "train.max_tokens", "checkpoint.every_steps", "parallel.tp", "engine.precision"):
        assert kind(key) == "safe"


def resume(folder: Path, first: list[str], then: list[str], step: int = 7) -> None:
    """As `train` does: the folder made with some overrides, then used again with others."""
    record_config(folder, load_run_config(first), 0)
    config = load_run_config(then)
    check_run(config, 1)
    check_same_config(folder, config)
    record_config(folder, config, step)


def test_safe_changes_are_logged_with_both_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    resume(tmp_path, [], ["train.max_steps=2000", "engine=zero3_bf16", "checkpoint.every_minutes=5"])
    assert [record.getMessage() for record in caplog.records] == [
        "changed after step 7: checkpoint.every_minutes: 30.0 there, 5.0 now",
        "changed after step 7: engine.cross_entropy: plain there, in_place now",
        "changed after step 7: engine.precision: fp32 there, bf16 now",
        "changed after step 7: engine.zero_stage: 1 there, 3 now",
        "changed after step 7: train.max_steps: 1000 there, 2000 now",
    ]


def test_unsafe_changes_are_refused_with_what_to_add(tmp_path: Path) -> None:
    other = ["optim.lr=1e-3", "train.global_batch_size=32", "train.max_steps=5"]
    with pytest.raises(RunError) as caught:
        resume(tmp_path, [], other)
    assert str(caught.value) == (
        f"run.dir='{tmp_path}' was made by another configuration:\n"
        "  optim.lr: 0.0003 there, 0.001 now\n"
        "  train.global_batch_size: 16 there, 32 now\n"
        "  hint: to continue with the new values, add run.accept_changes=[optim.lr,train.global_batch_size]\n"
        "  hint: to start another run, choose another run.name or run.dir"
    )
    assert read_run_config(tmp_path / CONFIG_FILE).optim.lr == 3e-4 and not (tmp_path / CHANGES_FILE).exists()
    with pytest.raises(RunError, match=r"accept_changes=\[optim.lr,train.global_batch_size\]") as caught:
        resume(tmp_path, [], [*other, "run.accept_changes=[optim.lr]"])
    assert "optim.lr:" not in str(caught.value)
    resume(tmp_path, [], [*other, "run.accept_changes=[optim.lr,train.global_batch_size]"])


def test_the_history_of_changes_is_kept(tmp_path: Path) -> None:
    accept = "run.accept_changes=[optim.lr]"
    resume(tmp_path, [], ["optim.lr=1e-3", accept])
    record_config(tmp_path, load_run_config(["optim.lr=1e-3", accept]), 8)  # the same command again: no line
    record_config(tmp_path, load_run_config([]), 9, [Change("data", "old", "new")])
    lines = [json.loads(line) for line in (tmp_path / CHANGES_FILE).read_text().splitlines()]
    assert [(line["step"], line["changes"]) for line in lines] == [
        (7, {"optim.lr": [3e-4, 1e-3]}),
        (9, {"optim.lr": [1e-3, 3e-4], "data": ["old", "new"]}),
    ]
    assert read_run_config(tmp_path / CONFIG_FILE) == load_run_config([])


def test_the_shape_of_the_model_is_never_accepted(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        resume(tmp_path, [], ["model.num_layers=4", "optim.lr=1e-3"])
    message = str(caught.value)
    assert "model.num_layers: 2 there, 4 now; never accepted" in message and "optim.lr: 0.0003 there" in message
    assert "the tensors of the checkpoints do not fit this model" in message and "accept_changes" not in message
    with pytest.raises(ConfigError) as refused:
        check_run(load_run_config(["run.accept_changes=[model.num_layers]"]), 1)
    assert "run.accept_changes=model.num_layers: model.num_layers is part of the model's shape" in str(refused.value)


@pytest.mark.parametrize("name", ["optim.lrr", "optim", "everything", "engine.offload"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"run.accept_changes={name}: unknown key"):
        check_run(load_run_config([f"run.accept_changes=[{name}]"]), 1)


def test_every_key_and_the_data_may_be_named() -> None:
    names = [*sorted(leaves() - SHAPE), "data", "tokenizer"]
    assert set(names) - {"data", "tokenizer"} <= set(record_keys(RunConfig))
    check_run(load_run_config([f"run.accept_changes=[{','.join(names)}]"]), 1)


def test_keys_of_one_start_are_not_changes() -> None:
    starts = (["run.accept_changes=[]"], ["run.accept_changes=[data]", "run.restart=true"])
    before, now = (flatten(yaml.safe_load(to_yaml(load_run_config(start)))) for start in starts)
    assert not changes_between(before, now) and refusal([], []) is None


# Data


@dataclasses.dataclass
class Data:
    """As much of a dataset as is compared."""

    manifest: Any
    digest: str
    description: str = "data/now"

    def digest_before(self, position: int) -> str:
        return f"{self.digest} before {position}"


SAVED = {"tokenizer_fingerprint": "tok", "dataset_digest": "set before 5", "vocab_size": 9, "state": {"position": 5}}


def data(fingerprint: str = "tok", digest: str = "set", vocab_size: int = 9) -> Any:
    tokenizer = type("Tokenizer", (), {"fingerprint": fingerprint, "vocab_size": vocab_size})
    return Data(type("Manifest", (), {"tokenizer": tokenizer}), digest)


def test_other_data_is_accepted_only_if_it_is_named() -> None:
    assert check_same_data(SAVED, data(), Path("c"), []) == []
    with pytest.raises(RunError, match="the run was trained on other data") as caught:
        check_same_data(SAVED, data("other", "other"), Path("c"), ["optim.lr"])
    assert str(caught.value).endswith("to continue with other data, add run.accept_changes=[data,optim.lr,tokenizer]")
    assert "c: tokenizer fingerprint tok there, other now, dataset digest set before 5 there" in str(caught.value)
    changes = check_same_data(SAVED, data("other", "other"), Path("c"), ["data", "tokenizer"])
    assert [change.key for change in changes] == ["tokenizer", "data"]
    with pytest.raises(RunError, match=r"add run.accept_changes=\[data,tokenizer\]"):
        check_same_data(SAVED, data("other", "other"), Path("c"), ["data"])


def test_another_vocabulary_size_is_never_accepted() -> None:
    with pytest.raises(RunError, match="with the same vocabulary size: 9 there, 10 now"):
        check_same_data(SAVED, data("other", "other", 10), Path("c"), ["data", "tokenizer"])

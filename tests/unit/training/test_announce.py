"""`train` logs the length of a run and its epochs."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from data_pipeline.stream.mixture import MixedDataset
from data_pipeline.stream.mixture_segments import Component, Mixture
from pretrain.config.load import load_run_config, to_yaml
from pretrain.config.run import RunConfig
from pretrain.run.state import RunState
from pretrain.training.announce import announce_end, announce_new_length, warn_of_repeated_data
from pretrain.training.data import epochs_at

TOKENS = 16 * 256
"""A step."""


@dataclass
class Part:
    """A dataset as far as epochs go."""

    num_samples: int


def mixture(sizes: dict[str, int], weights: tuple[float, ...]) -> MixedDataset:
    dataset = MixedDataset.__new__(MixedDataset)
    dataset.names, dataset.parts = tuple(sizes), cast(Any, tuple(Part(size) for size in sizes.values()))
    dataset.mixture = Mixture([Component(name, size, None) for name, size in sizes.items()], [(0, weights)])
    return dataset


TWO = mixture({"base": 1000, "small": 10}, (0.5, 0.5))


def resumed(folder: Path, before: list[str], now: list[str], step: int) -> None:
    (folder / "config.yaml").write_text(to_yaml(load_run_config(before)))
    announce_new_length(folder, load_run_config(now), RunState(step=step, tokens=step * TOKENS))


def config(*overrides: str) -> RunConfig:
    return load_run_config(["train.max_steps=100", *overrides])


def test_epochs_are_those_of_each_dataset() -> None:
    assert epochs_at(TWO, 324) == {"base": 0.162, "small": 16.2}


@pytest.mark.parametrize(("limit", "warns"), [("4", True), ("16.3", False), ("null", False)])
def test_a_dataset_that_is_repeated_too_often_is_named(limit: str, warns: bool, caplog: Any) -> None:
    warn_of_repeated_data(config(f"train.warn_epochs={limit}"), TWO, 324)
    assert ("small 16.20 epochs: more than train.warn_epochs=4" in caplog.text) == warns
    assert "base" not in caplog.text


def test_the_last_log_lines_have_the_totals_and_the_reason(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    state = RunState(step=30, position=324, tokens=30 * TOKENS, train_seconds=299)
    losses = {"train loss": 2.5, "validation loss": 2.75}
    announce_end(config("train.max_steps=30"), TWO, state, losses)
    reached = "finished: step 30, 122,880 tokens, base 0.16 epochs, small 16.20 epochs, train loss 2.5000, "
    assert caplog.messages == [reached + "validation loss 2.7500"]
    caplog.clear()
    timed = RunState(**{**state.to_json(), "cut_tokens": state.tokens, "cut_minutes": 5.0})
    announce_end(config("train.max_minutes=5"), TWO, timed, losses)
    assert "it ended before its 100 steps: train.max_minutes=5, and it trained for 5.0 minutes" in caplog.messages[1]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_new_length_logs_the_change_of_the_learning_rate(name: str, tmp_path: Path, caplog: Any) -> None:
    schedule = [f"lr_schedule={name}", "lr_schedule.warmup_steps=1"]
    resumed(tmp_path, [*schedule, "train.max_steps=4"], [*schedule, "train.max_steps=8", "optim.lr=3e-4"], 4)
    (line,) = caplog.messages
    assert line.startswith("step 5: the learning rate changes from 3e-05 (old length, end after step 4) to ")
    assert f"(new length, end after step 8): lr_schedule.name={name}" in line and "lr_schedule=wsd" in line


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["train.max_steps=50"], ["train.max_steps=50", "optim.lr=1e-3"]),
        (["train.max_steps=50"], ["train.max_steps=null", f"train.max_tokens={50 * TOKENS}"]),
        (["lr_schedule=constant"], ["lr_schedule=constant", "train.max_steps=9"]),
        (["lr_schedule=wsd", "train.max_steps=40"], ["lr_schedule=wsd", "train.max_steps=400"]),
    ],
)
def test_an_unchanged_learning_rate_is_not_logged(
    before: list[str], now: list[str], tmp_path: Path, caplog: Any
) -> None:
    warmup = "lr_schedule.warmup_steps=2"
    resumed(tmp_path, [*before, warmup], [*now, warmup], 4)
    assert caplog.messages == []

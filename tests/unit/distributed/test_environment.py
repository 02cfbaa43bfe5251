"""Every command sets the variables that CUDA reads once before it first asks torch for a device."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.bench import measure
from pretrain.commands import training_run
from pretrain.config.load import load_generate_config
from pretrain.distributed.environment import set_variables
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.runtime import runtime
from pretrain.generation import generate
from pretrain.resume import replay
from tests.support.models import run_config

ASKING = ("is_available", "device_count", "set_device", "current_device", "get_device_properties", "init")
READ_ONCE = "CUDA_DEVICE_MAX_CONNECTIONS"
CONFIG = run_config("gpt", "engine.device=auto", tp=2)


class AskedForADevice(Exception):
    pass


@pytest.fixture(autouse=True)
def second_of_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an environment that is as before afterwards."""
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    os.environ.pop(READ_ONCE, None)


def begin_training(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    data = SimpleNamespace(manifest=SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=91)), end_position=None)
    monkeypatch.setattr(training_run, "open_datasets", lambda config: (data, {}))
    training_run.train(replace(CONFIG, run=replace(CONFIG.run, dir=str(folder / "run"))))


def begin_generating(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    tokenizer: Any = SimpleNamespace(encode=lambda text: [5], decode=str, eod_id=2, vocab_size=91)
    generate.continuations(load_generate_config(["run=x"]), folder, CONFIG, tokenizer, [""])


def begin_measuring(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    measure._measure(CONFIG, measure.BenchOptions(), None, None)


def begin_verifying(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(replay, "read_run_config", lambda file: CONFIG)
    monkeypatch.setattr(replay, "open_datasets", lambda config: (None, {}))
    replay.verify_resume(folder)


@pytest.mark.parametrize("begin", [begin_training, begin_generating, begin_measuring, begin_verifying])
def test_commands_set_variables_before_torch_needs_a_device(
    begin: Callable[[pytest.MonkeyPatch, Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []

    def ask(*_: object, **__: object) -> None:
        found.append(os.environ.get(READ_ONCE))
        raise AskedForADevice

    for name in ASKING:
        monkeypatch.setattr(torch.cuda, name, ask)
    with pytest.raises(AskedForADevice):
        begin(monkeypatch, tmp_path)
    assert found == ["1"]


def test_a_runtime_alone_sets_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> bool:
        assert os.environ[READ_ONCE] == "1"
        raise AskedForADevice

    monkeypatch.setattr(torch.cuda, "is_available", ask)
    with pytest.raises(AskedForADevice), runtime(CONFIG.engine, layout=ParallelLayout(2, tp=2)):
        pass


@pytest.mark.parametrize(("tp", "given", "expected"), [(2, None, "1"), (1, None, None), (2, "8", "8")])
def test_tensor_parallelism_uses_one_queue_by_default(tp: int, given: str | None, expected: str | None) -> None:
    if given is not None:
        os.environ[READ_ONCE] = given
    set_variables(ParallelLayout(2, tp=tp))
    assert os.environ.get(READ_ONCE) == expected
    assert os.environ["RANK"] == "1" and os.environ["LOCAL_SIZE"] == "1"

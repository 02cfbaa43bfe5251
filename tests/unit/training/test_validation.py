"""A validation with tasks: their figures join the loss, and a request to stop leaves all of it out."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.config.load import load_run_config
from pretrain.training import validation


class Tasks:
    def __init__(self, values: dict[str, float] | None) -> None:
        self._values = values

    def values(self, engine: Any, ask_stop: Any) -> dict[str, float] | None:
        return self._values


@pytest.mark.parametrize(
    ("of_loss", "of_tasks", "expected"),
    [
        ({"loss": 1.0}, {"task/a/accuracy": 0.5}, {"loss": 1.0, "task/a/accuracy": 0.5}),
        ({"loss": 1.0}, None, None),
        (None, {"task/a/accuracy": 0.5}, None),
    ],
)
def test_tasks_join_the_loss_or_stop_the_validation(of_loss, of_tasks, expected, monkeypatch):
    monkeypatch.setattr(validation, "evaluate", lambda *_, **__: of_loss)
    trainer: Any = SimpleNamespace(
        config=load_run_config([]),
        groups=SimpleNamespace(layout=SimpleNamespace(pp=1, replicas=1), replica=0),
        here=SimpleNamespace(stage=lambda stage: contextlib.nullcontext()),
        engine=None,
    )
    tasks: Any = Tasks(of_tasks)
    evaluator = validation.build_evaluator(trainer, {}, lambda done, total: None, lambda: False, tasks)
    assert evaluator(max_samples=None) == expected

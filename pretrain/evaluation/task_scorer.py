"""Tasks, made into requests once, and scored with an engine as often as wanted."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.config.errors import ConfigError, Problem
from pretrain.engine.interface import Engine
from pretrain.evaluation.figures import Figure, figures_of
from pretrain.evaluation.scoring import score_together
from pretrain.evaluation.tasks import Task, requests_of

if TYPE_CHECKING:
    from pretrain.distributed.groups import ProcessGroups


class TaskScorer:
    """Scores tasks on all ranks together."""

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        *,
        seq_length: int,
        batch_size: int,
        groups: "ProcessGroups",
        one_shape: bool = False,
    ) -> None:
        """`one_shape`: all batches have the same shape, so that a compiled model is compiled once.

        Raises ConfigError if a choice is longer than the model sees.
        """
        self._tasks, self._tokenizer, self._groups = tasks, tokenizer, groups
        self._seq_length, self._batch_size, self._one_shape = seq_length, batch_size, one_shape
        self._requests = {task.name: requests_of(task, tokenizer, seq_length) for task in tasks}
        for name, requests in self._requests.items():
            longest = max(len(request.continuation) for request in requests)
            if longest > seq_length:
                rule = f"has a choice of {longest} tokens, and the model sees {seq_length} at once (model.seq_length)"
                raise ConfigError([Problem("tasks", name, rule, "leave the question out")])

    def figures(self, engine: Engine) -> dict[str, dict[str, Figure]]:
        """The figures of each task by name."""
        return {task.name: self._of(engine, task) for task in self._tasks}

    def values(self, engine: Engine) -> dict[str, float]:
        """The figures as records have them, and the seconds that they took."""
        started = time.perf_counter()
        values = {
            f"task/{task}/{name}": figure.value
            for task, figures in self.figures(engine).items()
            for name, figure in figures.items()
        }
        return {**values, "seconds_tasks": time.perf_counter() - started} if values else {}

    def _of(self, engine: Engine, task: Task) -> dict[str, Figure]:
        scored = score_together(
            engine,
            self._requests[task.name],
            self._groups,
            seq_length=self._seq_length,
            batch_size=self._batch_size,
            one_shape=self._one_shape,
        )
        return figures_of(task, scored, self._tokenizer, self._seq_length)

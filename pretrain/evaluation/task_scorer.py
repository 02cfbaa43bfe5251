"""Tasks, made into requests once, and scored with an engine as often as wanted."""

import logging
import math
import time
from collections.abc import Mapping, Sequence

from pretrain.config.errors import RunError
from pretrain.engine.interface import Engine
from pretrain.evaluation.figures import Figure, figures_of, unscored
from pretrain.evaluation.requests import Asked
from pretrain.evaluation.scoring import AskStop, Scoring, score

log = logging.getLogger(__name__)


class TaskScorer:
    """Scores tasks on all ranks together."""

    def __init__(self, asked: Sequence[Asked], how: Scoring) -> None:
        self._asked, self._how = asked, how

    def figures(self, engine: Engine, asked: Asked) -> dict[str, Figure]:
        """The figures of a task by name; raises RunError if a score is NaN or infinite."""
        scored = score(engine, asked.requests, self._how)
        assert scored is not None, "only a caller with ask_stop gets None"
        if count := unscored(scored):
            raise RunError(
                f"{asked.name}: {count:,} of {len(scored):,} scores are NaN or infinite",
                "the model's weights diverged, or engine.precision overflows",
            )
        return figures_of(asked, scored)

    def values(self, engine: Engine, ask_stop: AskStop) -> dict[str, float] | None:
        """The figures of all tasks and domains as records have them, and the seconds of each kind; None: asked to stop.

        A task with scores that are NaN or infinite has their number only.
        """
        values: dict[str, float] = {}
        for asked in self._asked:
            started, name = time.perf_counter(), f"{asked.kind}/{asked.name}"
            scored = score(engine, asked.requests, self._how, ask_stop)
            if scored is None:
                return None
            if count := unscored(scored):
                log.warning("%s %s: %d of %d scores are NaN or infinite", asked.kind, asked.name, count, len(scored))
                values[f"{name}/unscored"] = count
            else:
                values |= _of_record(name, figures_of(asked, scored))
            seconds = f"seconds_{asked.kind}s"
            values[seconds] = values.get(seconds, 0.0) + time.perf_counter() - started
        return values


def _of_record(name: str, figures: Mapping[str, Figure]) -> dict[str, float]:
    """The figures, each with its standard error if it is known."""
    values: dict[str, float] = {}
    for each, figure in figures.items():
        values[f"{name}/{each}"] = figure.value
        if not math.isnan(figure.error):
            values[f"{name}/{each}_error"] = figure.error
    return values

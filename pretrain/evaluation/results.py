"""The results of `pretrain evaluate` in a run folder, and how they are shown."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.errors import RunError
from pretrain.evaluation.plot import Points, draw_figures

RESULTS, PLOT = "evaluation.json", "evaluation.png"


@dataclass(frozen=True)
class Result:
    """The figures of one task for one checkpoint."""

    checkpoint: str
    task: str
    items: int
    figures: dict[str, tuple[float, float]]
    """Value and standard error by name."""
    seconds: float
    digest: str = ""
    """SHA-256 of the task file; empty for a task of lm-evaluation-harness."""
    contaminated: tuple[str, ...] | None = None
    """file:line and words of the items that the training text contains; None: they were not looked for."""


class ResultsFile:
    """evaluation.json of a run. It is written after each task, so a failure later loses nothing.

    A new result takes the place of that of the same checkpoint and task. Results of an earlier version of the task's
    file go too, so that all results of a task are comparable. All others stay.
    """

    def __init__(self, run: Path, name: str) -> None:
        """Raises RunError if a file is there that cannot be read. `name`: the title of the plot."""
        self._run, self._name = run, name
        self.kept = _read(run / RESULTS)

    def add(self, results: Sequence[Result]) -> None:
        """Put the results into the file, and draw those of several checkpoints."""
        new = {(each.checkpoint, each.task) for each in results}
        digests = {each.task: each.digest for each in results}
        kept = [
            each
            for each in self.kept
            if (each.checkpoint, each.task) not in new and digests.get(each.task, each.digest) == each.digest
        ]
        self.kept = sorted([*kept, *results], key=lambda each: each.checkpoint)
        self._write()
        if len({each.checkpoint for each in self.kept}) > 1:
            write_durably(self._run / PLOT, draw_figures(self._name, curves_of(self.kept)))

    def mark(self, contaminated: Mapping[tuple[str, str], tuple[str, ...]]) -> None:
        """Put the contaminated items into the results of these tasks, which are named with their digests."""
        self.kept = [
            dataclasses.replace(each, contaminated=contaminated.get((each.task, each.digest), each.contaminated))
            for each in self.kept
        ]
        self._write()

    def _write(self) -> None:
        described = [asdict(each) | {"figures": _for_json(each.figures)} for each in self.kept]
        write_durably(self._run / RESULTS, (json.dumps(described, indent=1, allow_nan=False) + "\n").encode())


def _read(path: Path) -> list[Result]:
    try:
        return [_result(each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        fault = error.strerror if isinstance(error, OSError) else "does not hold results of pretrain evaluate"
        raise RunError(f"{path}: {fault}", "move it away") from None


def _result(record: Mapping[str, Any]) -> Result:
    figures = {
        str(name): tuple(math.nan if each is None else float(each) for each in pair)
        for name, pair in record["figures"].items()
    }
    if any(len(pair) != 2 for pair in figures.values()):
        raise ValueError("a figure is a value and its standard error")
    pairs: Any = figures
    listed = record.get("contaminated")
    return Result(
        checkpoint=str(record["checkpoint"]),
        task=str(record["task"]),
        items=int(record["items"]),
        figures=pairs,
        seconds=float(record["seconds"]),
        digest=str(record.get("digest", "")),
        contaminated=None if listed is None else tuple(map(str, listed)),
    )


def _for_json(figures: Mapping[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    """Value and standard error by name; null instead of NaN, which JSON does not have."""
    return {name: [each if math.isfinite(each) else None for each in pair] for name, pair in figures.items()}


def curves_of(results: Sequence[Result]) -> dict[str, dict[str, Points]]:
    """Step, value and standard error of each checkpoint, by figure and task."""
    curves: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for each in results:
        step = int(each.checkpoint.rpartition("-")[2])
        for figure, (value, error) in each.figures.items():
            curves.setdefault(figure, {}).setdefault(each.task, []).append((step, value, error))
    return {figure: dict(of_tasks) for figure, of_tasks in curves.items()}


def lines_of(results: Sequence[Result]) -> list[list[str]]:
    """The rows of a table: checkpoint, task, items, figure, value with its standard error."""
    return [
        [each.checkpoint, each.task, f"{each.items:,}", name, f"{value:.4f}", f"{error:.4f}"]
        for each in results
        for name, (value, error) in each.figures.items()
    ]

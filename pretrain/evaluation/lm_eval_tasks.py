"""Tasks of lm-evaluation-harness (the extra `eval`), loaded before a model is."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from pretrain.config.errors import ConfigError, Problem

Figures = dict[str, tuple[float, float]]
"""Value and standard error by name."""


@dataclass(frozen=True)
class HarnessTasks:
    """The loaded tasks and groups that were asked for."""

    manager: TaskManager
    loaded: Mapping[str, Mapping[str, Any]]
    """The tasks, the groups, and the members of each group, by the name that was asked for."""

    def figures(self, model: LM) -> dict[str, tuple[int, Figures]]:
        """Items and figures of each task, on the first rank of each host; empty on the others.

        A group with a mean of its own comes before its members.
        """
        # More than 0: it is also the condition for the standard errors that have a formula.
        found = simple_evaluate(
            model, tasks=list(self._objects()), task_manager=self.manager, bootstrap_iters=100, log_samples=False
        )
        if found is None:
            return {}
        return {
            name: (self._items(name, found["n-samples"]), figures)
            for name, values in self._ordered(found["results"])
            if (figures := _figures(values))
        }

    def _objects(self) -> Iterator[Any]:
        for name, each in self.loaded.items():
            groups = each.get("groups") or {}
            yield from [groups[name]] if name in groups else each["tasks"].values()

    def _ordered(self, results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for each in self.loaded.values():
            for name in (*(each.get("groups") or {}), *each["tasks"]):
                if name in results:
                    yield name, results[name]

    def _items(self, name: str, samples: Mapping[str, Mapping[str, int]]) -> int:
        """Items of a task, or of all tasks of a group."""
        if name in samples:
            return int(samples[name]["effective"])
        members = next(each["group_map"][name] for each in self.loaded.values() if name in (each.get("groups") or {}))
        return sum(self._items(member, samples) for member in members)


def load_tasks(names: Sequence[str], folder: Path | None) -> HarnessTasks:
    """Load the tasks and their data; `folder`: task files of your own, None: those of the harness.

    Nothing is fetched while HF_HUB_OFFLINE is set. Raises ConfigError for what the harness does not have, cannot load,
    or does not score with a text model.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        hint = f"there are {', '.join(sorted(manager.all_tasks)[:20])}"
        raise _refused(unknown[0], "the harness has no such task", hint)
    loaded: dict[str, Mapping[str, Any]] = {}
    for name in names:
        try:
            loaded[name] = manager.load([name])
        except Exception as error:  # whatever the harness, its task files or the loader of data raise
            first = next(iter(str(error).splitlines()), type(error).__name__)
            hint = "without a network it needs data that is already on this machine"
            raise _refused(name, f"the harness cannot load it: {first}", hint) from None
        for task, each in loaded[name]["tasks"].items():
            if getattr(each, "MULTIMODAL", False) or getattr(each, "UNSAFE_CODE", False):
                raise _refused(name, f"{task} needs images, or runs code that a model wrote", "choose other tasks")
    tasks = [task for each in loaded.values() for task in each["tasks"]]
    if doubled := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise _refused(doubled[0], "is asked for twice, by itself or in groups", "leave one out")
    return HarnessTasks(manager, loaded)


def _refused(name: str, rule: str, hint: str) -> ConfigError:
    return ConfigError([Problem("tasks", f"lm_eval:{name}", rule, hint)])


def _figures(values: Mapping[str, Any]) -> Figures:
    """The harness names them METRIC,FILTER; its usual filter is called none."""
    figures = {}
    for key, value in values.items():
        metric, comma, of_filter = key.partition(",")
        if comma and isinstance(value, float | int) and not metric.endswith("_stderr"):
            error = values.get(f"{metric}_stderr,{of_filter}")
            known = float(error) if isinstance(error, float | int) else float("nan")
            figures[metric if of_filter == "none" else key] = (float(value), known)
    return figures

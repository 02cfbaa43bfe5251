"""The figures of tasks and domains in the records of validations.

A record has them as task/NAME/FIGURE and domain/NAME/FIGURE, and the standard error as task/NAME/FIGURE_error.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("task", "domain")
ERROR = "_error"
ACCURACY, UNCONDITIONAL, BITS, UNSCORED = "accuracy", "accuracy_unconditional", "bits_per_byte", "unscored"


@dataclass(frozen=True)
class TaskValue:
    """One figure of one task or domain."""

    kind: str
    name: str
    figure: str
    value: float
    error: float
    """The standard error; NaN if it is not known."""


def task_values(record: Mapping[str, Any]) -> Iterator[TaskValue]:
    """The figures in a record, in its order."""
    for key, value in record.items():
        kind, _, rest = key.partition("/")
        name, _, figure = rest.rpartition("/")
        if kind in KINDS and name and not figure.endswith(ERROR) and isinstance(value, int | float):
            error = record.get(key + ERROR)
            yield TaskValue(kind, name, figure, float(value), error if isinstance(error, float) else math.nan)


def tasks_line(record: Mapping[str, Any]) -> str:
    """Accuracies and bits per byte in a line, with their standard errors and the seconds; empty without tasks."""
    shown: dict[str, list[str]] = {}
    for each in task_values(record):
        if each.figure in _FORMS:
            error = "" if math.isnan(each.error) else f" ± {each.error:.3f}"
            shown.setdefault(each.name, []).append(_FORMS[each.figure].format(f"{each.value:.3f}{error}"))
    seconds = [record[key] for kind in KINDS if (key := f"seconds_{kind}s") in record]
    cost = f" ({sum(seconds):.1f} s)" if seconds else ""
    return "; ".join(f"{name} {', '.join(figures)}" for name, figures in shown.items()) + cost


_FORMS = {
    ACCURACY: "accuracy {}",
    UNCONDITIONAL: "unconditional {}",
    BITS: "{} bits per byte",
    UNSCORED: "{} scores are NaN or infinite",
}


def task_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a table: name, figure, value, standard error."""
    return [
        [each.name, each.figure, f"{each.value:.4f}", "" if math.isnan(each.error) else f"{each.error:.4f}"]
        for each in task_values(record)
    ]


def task_curves(records: Sequence[Mapping[str, Any]], figure: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of a figure by the name of the task or domain."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for each in task_values(record):
            if each.figure == figure:
                curves.setdefault(each.name, []).append((int(record["step"]), each.value))
    return curves

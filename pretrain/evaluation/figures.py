"""The figures of a task from the scores of its requests.

accuracy: the likeliest choice is the right one. accuracy_per_byte: by log-probability per byte of the choice, as long
choices are less likely. accuracy_unconditional: by how much the context raises the log-probability of the choice
(Brown et al. 2020, section 2.4). bits_per_byte: of the right choices, or of the texts; smaller is better, and steadier
than accuracies for small models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.evaluation.scoring import Scored
from pretrain.evaluation.tasks import Task, number_of_windows, size_in_bytes


@dataclass(frozen=True)
class Figure:
    """A mean over the items of a task, and its standard error (NaN of a single item)."""

    value: float
    error: float


def figures_of(task: Task, scored: Sequence[Scored], tokenizer: Tokenizer, seq_length: int) -> dict[str, Figure]:
    """The figures by name. `scored`: the results of `requests_of(task, ...)`."""
    if task.texts:
        return {"bits_per_byte": _of_texts(task.texts, scored, tokenizer, seq_length)}
    right: dict[str, list[float]] = {"accuracy": [], "accuracy_per_byte": [], "accuracy_unconditional": []}
    bits, place = [], 0
    for question in task.questions:
        count = len(question.choices)
        given = [each.log_probability for each in scored[place : place + count]]
        alone = [each.log_probability for each in scored[place + count : place + 2 * count]]
        place += 2 * count
        sizes = [size_in_bytes([choice]) for choice in question.choices]
        chosen = {
            "accuracy": given,
            "accuracy_per_byte": [value / size for value, size in zip(given, sizes, strict=True)],
            "accuracy_unconditional": [value - own for value, own in zip(given, alone, strict=True)],
        }
        for name, values in chosen.items():
            right[name].append(float(max(range(count), key=values.__getitem__) == question.answer))
        bits.append((-given[question.answer] / math.log(2), sizes[question.answer]))
    return {**{name: _mean(values) for name, values in right.items()}, "bits_per_byte": _ratio(bits)}


def _of_texts(texts: Sequence[str], scored: Sequence[Scored], tokenizer: Tokenizer, seq_length: int) -> Figure:
    pairs, place = [], 0
    for text in texts:
        count = number_of_windows(text, tokenizer, seq_length)
        total = sum(each.log_probability for each in scored[place : place + count])
        place += count
        pairs.append((-total / math.log(2), size_in_bytes([text])))
    return _ratio(pairs)


def _mean(values: Sequence[float]) -> Figure:
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Figure(mean, math.nan)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Figure(mean, math.sqrt(variance / count))


def _ratio(pairs: Sequence[tuple[float, int]]) -> Figure:
    """Sum over sum, with the standard error of a ratio estimator (Cochran 1977, section 2.11)."""
    bits, size = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    count, ratio = len(pairs), bits / size
    if count < 2:
        return Figure(ratio, math.nan)
    variance = sum((own - ratio * weight) ** 2 for own, weight in pairs) / (count - 1)
    return Figure(ratio, math.sqrt(count * variance) / size)

"""The figures of a task from the scores of its requests.

accuracy: the likeliest choice is the right one. accuracy_per_byte: by log-probability per byte of the choice, as long
choices are less likely. accuracy_unconditional: by how much the context raises the log-probability of the choice
(Brown et al. 2020, section 2.4). bits_per_byte: of the right choices, or of the texts; smaller is better, and steadier
than accuracies for small models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.evaluation.requests import Asked
from pretrain.evaluation.scoring import Scored

RANKINGS = ("accuracy", "accuracy_per_byte", "accuracy_unconditional")


@dataclass(frozen=True)
class Figure:
    """A mean over the items of a task, and its standard error (NaN of a single item)."""

    value: float
    error: float


def unscored(scored: Sequence[Scored]) -> int:
    """Number of results that are NaN or infinite: of a model that diverged, or that overflows in 16 bits."""
    return sum(not math.isfinite(each.log_probability) for each in scored)


def figures_of(asked: Asked, scored: Sequence[Scored]) -> dict[str, Figure]:
    """The figures by name. `scored`: the finite results of the requests."""
    right: dict[str, list[float]] = {name: [] for name in RANKINGS}
    bits: list[tuple[float, int]] = []
    place = 0
    for item, total in enumerate(asked.counts):
        values = [each.log_probability for each in scored[place : place + total]]
        sizes = [request.num_bytes for request in asked.requests[place : place + total]]
        place += total
        if asked.answers is None:
            bits.append((-sum(values) / math.log(2), sum(sizes)))
            continue
        count, answer = total // 2, asked.answers[item]
        given, alone = values[:count], values[count:]
        ranked = (
            given,
            [value / size for value, size in zip(given, sizes[:count], strict=True)],
            [value - own for value, own in zip(given, alone, strict=True)],
        )
        for name, chosen in zip(RANKINGS, ranked, strict=True):
            right[name].append(float(max(range(count), key=chosen.__getitem__) == answer))
        bits.append((-given[answer] / math.log(2), sizes[answer]))
    means = {} if asked.answers is None else {name: _mean(values) for name, values in right.items()}
    return {**means, "bits_per_byte": _ratio(bits)}


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

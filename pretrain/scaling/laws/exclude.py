"""Rules by which points are left out of a fit; each point that is left out is named with its rule."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import UserError
from pretrain.scaling.laws.points import Point, Points

TARGET_RULE = "a target of the ladder"


@dataclass(frozen=True)
class Excluded:
    """A point that is not in the fit."""

    point: Point
    rule: str


@dataclass(frozen=True)
class Rules:
    """The points that the user asked to leave out. Diverged runs and targets of a ladder always are."""

    highest: int = 0
    """So many of the highest losses."""
    at_least_tokens: float = 0.0
    """Shorter runs are left out."""
    at_least_warmups: float = 1.0
    """Runs with fewer steps than so many times the warm-up are left out, if the table has both."""
    names: tuple[str, ...] = ()
    """Names, or patterns of names."""


def apply_rules(points: Points, rules: Rules) -> tuple[Points, tuple[Excluded, ...]]:
    """The points that stay, and those that do not. The highest losses are counted after the other rules."""
    for pattern in rules.names:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in points.names):
            raise UserError(f"--exclude {pattern}: no point has such a name", f"the first is {points.names[0]!r}")
    excluded: list[Excluded] = []
    for text, applies in _checks(rules):
        out = [applies(point) for point in points.points]
        excluded += [Excluded(point, text) for point, is_out in zip(points.points, out, strict=True) if is_out]
        points = points.only([not is_out for is_out in out])
    if rules.highest:
        order = np.argsort(-points.losses, kind="stable")[: rules.highest]
        text = f"one of the {rules.highest} highest losses"
        excluded += [Excluded(points.points[i], text) for i in order]
        points = points.only([i not in order for i in range(len(points))])
    return points, tuple(excluded)


def _checks(rules: Rules) -> Sequence[tuple[str, Callable[[Point], bool]]]:
    warmups = rules.at_least_warmups
    return [
        (TARGET_RULE, lambda point: point.is_target),
        ("diverged", lambda point: point.is_diverged),
        (
            f"shorter than {warmups:g} times its warm-up",
            lambda point: point.steps < warmups * point.warmup_steps,  # False if one is unknown
        ),
        (f"fewer than {rules.at_least_tokens:.4g} tokens", lambda point: point.tokens < rules.at_least_tokens),
        ("its name", lambda point: any(fnmatch.fnmatchcase(point.name, pattern) for pattern in rules.names)),
    ]

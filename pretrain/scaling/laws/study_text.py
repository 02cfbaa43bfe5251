"""A study as lines of text, for `pretrain scale fit` and the report page."""

import itertools
from collections.abc import Iterator, Sequence

from pretrain.scaling.laws.bootstrap import Interval
from pretrain.scaling.laws.exclude import Excluded
from pretrain.scaling.laws.holdout import Holdout
from pretrain.scaling.laws.points import Points
from pretrain.scaling.laws.study import NAMES, Study

LABELS = {"e": "E", "alpha": "alpha", "beta": "beta", "a": "A", "b": "B"}
MOST_NAMES = 8
"""Names of points that are listed for one rule; the others are counted."""


def study_lines(result: Study) -> list[str]:
    """The whole study."""
    return [
        *_points(result.points),
        *excluded_lines(result.excluded),
        "",
        *_law(result),
        "",
        *_checks(result.holdouts),
        "",
        *_isoflop(result),
        *_envelope(result),
    ]


def _points(points: Points) -> Iterator[str]:
    sizes = len(set(points.parameters))
    yield f"{len(points)} points of {sizes} sizes; N is {points.size!r}, the loss is {points.loss!r}"
    for name, values in (("N", points.parameters), ("D", points.tokens), ("C", points.flops)):
        yield f"  {name} {values.min():.3g} to {values.max():.3g}"


def excluded_lines(excluded: Sequence[Excluded]) -> Iterator[str]:
    """The points that were left out, by rule."""
    for rule, group in itertools.groupby(excluded, key=lambda each: each.rule):
        names = [each.point.name for each in group]
        shown = ", ".join(names[:MOST_NAMES])
        more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        yield f"left out {len(names)}: {rule}: {shown}{more}"


def _law(result: Study) -> Iterator[str]:
    draws = len(result.bootstrap.laws)
    yield "approach 3: L(N, D) = E + A / N^alpha + B / D^beta, Huber loss of log residuals"
    yield f"  {'':8}{'value':>11}{'std. error':>12}   95 % interval ({draws} bootstrap refits)"
    intervals = result.intervals()
    for name in NAMES:
        each, error = intervals[name], result.bootstrap.standard_error(name)
        note = f"   not identified: {result.not_identified[name]}" if name in result.not_identified else ""
        yield f"  {LABELS[name]:8}{each.value:11.5g}{error:12.3g}   {_ends(each)}{note}"
    frontier = intervals["frontier_exponent"]
    yield f"  best N ~ C^{frontier.value:.3f}   {_ends(frontier)}, best D ~ C^{1 - frontier.value:.3f}"
    rms = 100 * float((result.fit.residuals**2).mean() ** 0.5)
    yield f"  objective {result.fit.objective:.6g}, residuals {rms:.2f} % (root mean square)"
    if result.over_penalty != 1.0:
        yield f"  points that the law over-estimates count {result.over_penalty:g} times (--over-penalty)"


def _checks(holdouts: Sequence[Holdout]) -> Iterator[str]:
    if not holdouts:
        yield "check: too few points to leave the largest out and fit the others"
    for each in holdouts:
        error = f"median error {each.median:.2%}, worst {each.worst:.2%}"
        if len(each.points) == 1:
            error = (
                f"predicted {each.predicted[0]:.4f}, measured {each.points.losses[0]:.4f}, error {each.errors[0]:+.2%}"
            )
        yield f"check: fitted without {each.left_out}: {error}"


def _isoflop(result: Study) -> Iterator[str]:
    if result.isoflop is None or result.isoflop_exponent is None:
        yield f"approach 2 (IsoFLOP): not possible: {result.missing['isoflop']}"
        return
    exponent = result.isoflop_exponent
    budgets = len(result.isoflop.bowls)
    yield f"approach 2 (IsoFLOP): best N ~ C^{exponent.value:.3f}   {_ends(exponent)}, from {budgets} budgets"
    for skipped in result.isoflop.skipped:
        yield f"  left out: {skipped}"


def _envelope(result: Study) -> Iterator[str]:
    if result.envelope is None or result.envelope_exponent is None:
        yield f"envelope: not possible: {result.missing['envelope']}"
        return
    law, gamma = result.envelope.law, result.envelope_exponent
    yield (
        f"envelope: L(C) = {law.e:.4g} + {law.k:.4g} / C^{gamma.value:.3f}   {_ends(gamma)}, "
        f"from the {len(result.envelope.points)} runs that no cheaper run beats"
    )


def _ends(each: Interval) -> str:
    return f"[{each.low:.4g}, {each.high:.4g}]"

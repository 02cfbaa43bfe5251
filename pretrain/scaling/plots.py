"""The plots of a study as data: titles, axes and series. `draw` makes pictures of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pretrain.scaling.laws.exclude import TARGET_RULE
from pretrain.scaling.laws.points import Array, Point
from pretrain.scaling.laws.study import Study

CURVE_POINTS = 60
BEYOND = 10.0
"""The curves over compute continue to so many times the largest run."""
MOST_GROUPS = 8
"""Sizes or budgets that have a colour of their own; more are put together."""

Kind = Literal["points", "line", "diamonds"]


@dataclass(frozen=True)
class Series:
    """Points or a line of one plot."""

    label: str
    x: Array
    y: Array
    kind: Kind
    colour: int | None = None
    """Number in the palette; None: a quiet grey."""
    names: tuple[str, ...] = ()
    """The name of each point, for a hover."""


@dataclass(frozen=True)
class Plot:
    """One chart; `name` is that of its file."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False
    log_x: bool = True


def plots_of(study: Study) -> list[Plot]:
    """Loss against compute, IsoFLOP bowls (if there are any), residuals, and prediction against measurement."""
    found = [_compute(study), _bowls(study), _residuals(study), _predictions(study)]
    return [plot for plot in found if plot is not None]


def targets_of(study: Study) -> list[Point]:
    """Runs that the ladder kept out of the fit, to be predicted."""
    return [each.point for each in study.excluded if each.rule == TARGET_RULE and each.point.loss > 0]


def _compute(study: Study) -> Plot:
    points, targets = study.points, targets_of(study)
    most = max([points.flops.max(), *(point.flops for point in targets)])
    compute = np.geomspace(points.flops.min(), most * BEYOND, CURVE_POINTS)
    series = list(_by_size(study, points.flops, points.losses))
    series.append(Series("best loss of the law L(N, D)", compute, study.fit.law.best_loss(compute), "line", 0))
    if study.envelope is not None:
        series.append(Series("law of the envelope", compute, study.envelope.law.loss(compute), "line", 1))
    if targets:
        series.append(_target_series(targets, [point.flops for point in targets], [point.loss for point in targets]))
    return Plot(
        "loss_against_compute", "Loss against compute", "compute C (FLOPs)", study.points.loss, tuple(series), True
    )


def _bowls(study: Study) -> Plot | None:
    if study.isoflop is None:
        return None
    points, series = study.points, []
    for number, bowl in enumerate(study.isoflop.bowls):
        n, losses = points.parameters[bowl.members], points.losses[bowl.members]
        sizes = np.geomspace(n.min(), n.max(), CURVE_POINTS)
        label, names = f"{bowl.flops:.2g} FLOPs", tuple(points.names[i] for i in bowl.members)
        series.append(Series(label, n, losses, "points", number, names))
        series.append(Series(label, sizes, np.exp(bowl.log_loss(np.log(sizes))), "line", number))
    best = np.exp([bowl.minimum for bowl in study.isoflop.bowls])
    least = np.exp([float(bowl.log_loss(np.array(bowl.minimum))) for bowl in study.isoflop.bowls])
    series.append(Series("minima", best, least, "diamonds"))
    title = "IsoFLOP: loss against size at equal compute"
    return Plot("isoflop", title, f"N ({points.size})", points.loss, tuple(series), True)


def _residuals(study: Study) -> Plot:
    percent = 100 * (np.exp(study.fit.residuals) - 1)
    flops = study.points.flops
    zero = Series("the law", np.array([flops.min(), flops.max()]), np.zeros(2), "line")
    series = (zero, *_by_size(study, flops, percent))
    return Plot("residuals", "Residuals of the law", "compute C (FLOPs)", "predicted over measured, %", series)


def _predictions(study: Study) -> Plot:
    points, law = study.points, study.fit.law
    predicted = law.loss(points.parameters, points.tokens)
    series = [Series("in the fit", points.losses, predicted, "points", 0, tuple(points.names))]
    for number, each in enumerate(study.holdouts, start=1):
        names = tuple(each.points.names)
        series.append(
            Series(f"fitted without {each.which}", each.points.losses, each.predicted, "points", number, names)
        )
    if targets := targets_of(study):
        guesses = [float(law.loss(point.parameters, point.tokens)) for point in targets]
        series.append(_target_series(targets, [point.loss for point in targets], guesses))
    ends = np.array([min(each.x.min() for each in series), max(each.x.max() for each in series)])
    series.append(Series("equal", ends, ends, "line"))
    title = "Prediction against measurement"
    return Plot("predictions", title, f"measured {points.loss}", "predicted", tuple(series), False, False)


def _target_series(targets: Sequence[Point], x: Sequence[float], y: Sequence[float]) -> Series:
    names = tuple(point.name for point in targets)
    return Series("targets, not in the fit", np.array(x), np.array(y), "diamonds", 2, names)


def _by_size(study: Study, x: Array, y: Array) -> Iterator[Series]:
    """Points in the colour of their size; close sizes share one if there are many."""
    sizes = study.points.parameters
    distinct = np.unique(sizes)
    if len(distinct) > MOST_GROUPS:
        edges = np.geomspace(sizes.min(), sizes.max(), MOST_GROUPS + 1)[1:-1]
        groups = np.searchsorted(edges, sizes)
    else:
        groups = np.searchsorted(distinct, sizes)
    for number, group in enumerate(np.unique(groups)):
        inside = groups == group
        low, high = sizes[inside].min(), sizes[inside].max()
        label = f"N = {low:.3g}" if low == high else f"N = {low:.2g} to {high:.2g}"
        names = tuple(name for name, is_in in zip(study.points.names, inside, strict=True) if is_in)
        yield Series(label, x[inside], y[inside], "points", number, names)

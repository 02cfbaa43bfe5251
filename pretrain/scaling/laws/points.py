"""The points of a scaling law: a run each, with its size N, tokens D, compute C and final loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError

Array = NDArray[np.float64]
FLOPS_PER_TOKEN = 6.0
"""Training costs C = 6 N D floating-point operations if nothing else is known."""


class BadPoints(UserError):
    """Points that no law can be fitted to."""


@dataclass(frozen=True)
class Point:
    """One run."""

    name: str
    parameters: float
    """N, with or without embeddings, as `Points.size` says."""
    tokens: float
    flops: float
    loss: float
    steps: float = float("nan")
    warmup_steps: float = float("nan")
    is_diverged: bool = False
    is_target: bool = False
    """Whether the ladder keeps it out of the fit, to compare it with the prediction."""
    seed: str = ""
    """Empty if the table does not say."""


@dataclass(frozen=True)
class Points:
    """The points of one fit."""

    points: tuple[Point, ...]
    size: str = "parameters"
    """The column that N is from."""
    loss: str = "loss"
    """The column that the loss is from."""
    scales: tuple[str, str] = ("", "")
    """Tokenizer and validation set of the losses, empty if the table does not say."""

    def __len__(self) -> int:
        return len(self.points)

    @property
    def names(self) -> list[str]:
        return [point.name for point in self.points]

    @property
    def parameters(self) -> Array:
        return np.array([point.parameters for point in self.points])

    @property
    def tokens(self) -> Array:
        return np.array([point.tokens for point in self.points])

    @property
    def flops(self) -> Array:
        return np.array([point.flops for point in self.points])

    @property
    def losses(self) -> Array:
        return np.array([point.loss for point in self.points])

    def only(self, chosen: Iterable[bool] | NDArray[np.bool_]) -> "Points":
        """The points that are chosen, in their order."""
        kept = tuple(point for point, keep in zip(self.points, chosen, strict=True) if keep)
        return Points(kept, self.size, self.loss, self.scales)


def points_of(
    parameters: Sequence[float] | Array, tokens: Sequence[float] | Array, loss: Sequence[float] | Array
) -> Points:
    """Points with C = 6 N D and names that say N and D."""
    rows = zip(parameters, tokens, loss, strict=True)
    return Points(
        tuple(
            Point(
                cell_name(float(n), float(d)), float(n), float(d), FLOPS_PER_TOKEN * float(n) * float(d), float(value)
            )
            for n, d, value in rows
        )
    )


def cell_name(parameters: float, tokens: float) -> str:
    return f"N={parameters:.4g} D={tokens:.4g}"


def mean_of_seeds(points: Points) -> Points:
    """Runs of one cell with different seeds as one point: the mean of their losses.

    A law is then fitted to cells, so that a cell of many seeds counts as much as the others, and the bootstrap draws
    cells. Equal cells without seeds, or with equal ones, stay: `check_points` refuses them.
    """
    cells: dict[tuple[float, float], list[Point]] = {}
    for point in points.points:
        cells.setdefault((point.parameters, point.tokens), []).append(point)
    kept: list[Point] = []
    for runs in cells.values():
        seeds = {run.seed for run in runs}
        if len(runs) == 1 or "" in seeds or len(seeds) < len(runs):
            kept += runs
            continue
        loss = sum(run.loss for run in runs) / len(runs)
        kept.append(replace(runs[0], name=f"{runs[0].name} ({len(runs)} seeds)", loss=loss, seed=""))
    return Points(tuple(kept), points.size, points.loss, points.scales)


def check_points(points: Points, at_least: int, law: str) -> None:
    """Raise BadPoints for a value that cannot be used, a cell that is there twice, or too few points for the law."""
    for point in points.points:
        for what, value in ((points.size, point.parameters), ("tokens", point.tokens), ("flops", point.flops)):
            if not 0 < value < float("inf"):
                raise BadPoints(f"{point.name}: {what} is {value:g}; it must be a number above 0")
        if not 0 < point.loss < float("inf"):
            raise BadPoints(
                f"{point.name}: {points.loss} is {point.loss:g}; it must be a number above 0",
                f"leave the run out: --exclude {point.name!r}",
            )
    _no_duplicates(points)
    if len(points) < at_least:
        raise BadPoints(
            f"{len(points)} points remain, and the {law} needs at least {at_least}",
            "train more cells, or exclude fewer",
        )


def _no_duplicates(points: Points) -> None:
    seen: dict[tuple[float, float], str] = {}
    for point in points.points:
        cell = (point.parameters, point.tokens)
        if cell in seen:
            raise BadPoints(
                f"{seen[cell]} and {point.name} are the same cell: {cell_name(*cell)}",
                f"leave one of them out: --exclude {point.name!r}; runs that differ by a column `seed` are averaged",
            )
        seen[cell] = point.name

"""Assigns each position of a mixture to a component, and counts that component's samples before it.

Both are a pure function of the position in integer arithmetic, so a stream can start anywhere and all ranks agree. A
binary tree over the components assigns the positions: at a node of weight w whose left half weighs l, the first q
positions hold floor(q l / w + 1 / 2) samples of the left half. So every section of the stream holds each component by
its weight, to within one sample per level of the tree.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.config import LEAST_SHARE
from data_pipeline.permutation import Positions

UNITS = round(1 / LEAST_SHARE)
"""Weights are rounded to this many parts of the whole."""

MAX_POSITION = 1 << 42
"""Keeps positions times units below 2**63."""


@dataclass(frozen=True)
class Component:
    """A dataset, as the mixture sees it."""

    name: str
    num_samples: int
    max_samples: int | None
    """Use at most this many samples. None: no limit, the dataset repeats."""


@dataclass(frozen=True)
class Segment:
    """The stream from position `start` to the next segment, with constant weights."""

    start: int
    units: tuple[int, ...]
    """Integer weight of each component; 0: not used."""
    taken: tuple[int, ...]
    """Samples of each component in all earlier segments."""


class Mixture:
    """The segments of the stream, computed once. Everything else is arithmetic on them."""

    def __init__(self, components: Sequence[Component], phases: Sequence[tuple[int, Sequence[float]]]) -> None:
        """`phases` are (first position, weights), ascending; the first begins at 0."""
        assert phases[0][0] == 0 and all(first < then for (first, _), (then, _) in itertools.pairwise(phases))
        self.components, self.phases = tuple(components), tuple(phases)
        self.segments: list[Segment] = []
        self.end_position: int | None = None
        """The position at which every component with weight is used up. None: never."""
        self._plan(phases)
        self._starts = np.array([segment.start for segment in self.segments], dtype=np.int64)

    def assign(self, positions: Positions) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The number of the component at each position, and how many samples of that component come before it."""
        where = np.asarray(positions, dtype=np.int64)
        assert not len(where) or (
            where.min() >= 0 and where.max() < (MAX_POSITION if self.end_position is None else self.end_position)
        )
        which, index = np.empty_like(where), np.empty_like(where)
        numbers = np.searchsorted(self._starts, where, side="right") - 1
        for number in np.unique(numbers).tolist():
            segment, chosen = self.segments[number], np.flatnonzero(numbers == number)
            _assign(where[chosen] - segment.start, chosen, segment.units, 0, len(segment.units), which, index)
            index[chosen] += np.array(segment.taken, dtype=np.int64)[which[chosen]]
        return which, index

    def taken(self, position: int) -> tuple[int, ...]:
        """Samples of each component before this position."""
        segment = [segment for segment in self.segments if segment.start <= position][-1]
        return tuple(
            before + _count(segment.units, item, position - segment.start) for item, before in enumerate(segment.taken)
        )

    def before(self, position: int) -> list[tuple[int, tuple[int, ...]]]:
        """The start and units of each segment before a position, which decide the stream up to there."""
        return [(segment.start, segment.units) for segment in self.segments if segment.start < position]

    def _plan(self, phases: Sequence[tuple[int, Sequence[float]]]) -> None:
        taken = (0,) * len(self.components)
        start = 0
        for number, (_, weights) in enumerate(phases):
            end = phases[number + 1][0] if number + 1 < len(phases) else MAX_POSITION
            while start < end:
                left = [
                    None if i.max_samples is None else i.max_samples - n
                    for i, n in zip(self.components, taken, strict=True)
                ]
                units = _units([0.0 if rest == 0 else weight for weight, rest in zip(weights, left, strict=True)])
                if not any(units):
                    self.end_position = start
                    return
                self.segments.append(Segment(start, units, taken))
                used_up = [
                    _when(units, item, rest) for item, rest in enumerate(left) if rest is not None and units[item]
                ]
                length = min([end - start, *used_up])
                taken = tuple(before + _count(units, item, length) for item, before in enumerate(taken))
                start += length


def _units(weights: Sequence[float]) -> tuple[int, ...]:
    whole = math.fsum(weights)
    return tuple(max(1, round(weight / whole * UNITS)) if weight else 0 for weight in weights)


def _assign(
    positions: npt.NDArray[np.int64],
    slots: npt.NDArray[np.intp],
    units: tuple[int, ...],
    first: int,
    last: int,
    which: npt.NDArray[np.int64],
    index: npt.NDArray[np.int64],
) -> None:
    """Fill `slots` of `which` and `index` for these positions of the subtree first .. last."""
    if not len(slots):
        return
    if last - first == 1:
        which[slots], index[slots] = first, positions
        return
    middle = (first + last) // 2
    left, whole = sum(units[first:middle]), sum(units[first:last])
    if not left or left == whole:
        halves = (first, middle) if left else (middle, last)
        _assign(positions, slots, units, *halves, which, index)
        return
    lefts = (positions * left + whole // 2) // whole
    is_left = ((positions + 1) * left + whole // 2) // whole > lefts
    _assign(lefts[is_left], slots[is_left], units, first, middle, which, index)
    _assign((positions - lefts)[~is_left], slots[~is_left], units, middle, last, which, index)


def _count(units: tuple[int, ...], item: int, length: int) -> int:
    """Samples of `item` among the first `length` positions of a segment."""
    first, last = 0, len(units)
    while last - first > 1:
        middle = (first + last) // 2
        left, whole = sum(units[first:middle]), sum(units[first:last])
        lefts = (length * left + whole // 2) // whole if whole else 0
        if item < middle:
            length, last = lefts, middle
        else:
            length, first = length - lefts, middle
    return length


def _when(units: tuple[int, ...], item: int, count: int) -> int:
    """The least length of a segment that holds `count` samples of `item`."""
    low, high = count, MAX_POSITION
    while low < high:
        middle = (low + high) // 2
        if _count(units, item, middle) >= count:
            high = middle
        else:
            low = middle + 1
    return low

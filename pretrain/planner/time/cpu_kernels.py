"""Seconds of matrix products and attention on a CPU, between measured ones."""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.planner.time.cpu_costs import Precision
from pretrain.planner.time.hardware import Direction, Hardware, Product

ATTENTION_KERNELS: Mapping[Precision, str] = {"fp32": "cpu", "bf16": "cpu_bf16", "fp16": "cpu_bf16"}
"""Names of the measured curves; fp16 is not measured."""

Point = tuple[int, int, int]
Role = tuple[bool, bool]
"""Whether the product is a data gradient, and whether it is added to a sum."""
FORWARD, DATA_GRADIENT, WEIGHT_GRADIENT = (False, False), (True, False), (False, True)


@dataclass(frozen=True)
class KernelTimes:
    """Seconds of the kernels of one layer, for one micro-batch."""

    products_forward: float
    products_backward: float
    attention_forward: float
    attention_backward: float

    @property
    def whole(self) -> float:
        return self.products_forward + self.products_backward + self.attention_forward + self.attention_backward


class CpuKernels:
    """The kernels of one rank that is alone on its machine. A precision without a table runs as the nearest one."""

    def __init__(self, hardware: Hardware, precision: Precision) -> None:
        wanted = (precision, "bf16" if precision == "fp16" else "fp32", "fp32")
        tables = {table.precision: table for table in hardware.products}
        rows = next((tables[name].products for name in wanted if name in tables), ())
        self._grids = {role: _Grid(rows, role) for role in (FORWARD, DATA_GRADIENT, WEIGHT_GRADIENT)}
        self._plain = 1e12 * (hardware.product_tflops.of(precision) or hardware.product_tflops.fp32.value)
        self._curves: dict[tuple[Direction, int], list[tuple[float, float]]] = {}
        for curve in hardware.attention:
            if curve.kernel == ATTENTION_KERNELS[precision]:
                points = sorted((math.log2(int(length)), math.log2(rate)) for length, rate in curve.tflops.items())
                self._curves[curve.direction, curve.head_dim] = points

    def product(self, m: int, k: int, n: int, role: Role) -> float:
        """Seconds of [m, k] x [k, n]."""
        rate = self._grids[role].rate((m, k, n)) or self._plain
        return 2.0 * m * k * n / rate

    def linear(self, tokens: int, inputs: int, outputs: int) -> tuple[float, float]:
        """Seconds forward and backward of a linear map of `tokens` rows."""
        backward = self.product(tokens, outputs, inputs, DATA_GRADIENT)
        backward += self.product(outputs, tokens, inputs, WEIGHT_GRADIENT)
        return self.product(tokens, inputs, outputs, FORWARD), backward

    def attention(self, direction: Direction, samples: int, length: int, heads: int, width: int) -> float:
        """Seconds of causal attention; the lower triangle's operations count."""
        operations = (2.0 if direction == "forward" else 5.0) * samples * heads * length**2 * width
        widths = sorted(size for way, size in self._curves if way == direction)
        if not widths:
            return operations / self._plain
        nearest = min(widths, key=lambda size: abs(math.log2(size / width)))
        return operations / (1e12 * 2 ** _between(self._curves[direction, nearest], math.log2(length)))

    def layer(
        self,
        samples: int,
        length: int,
        *,
        hidden: int,
        inner: int,
        heads: int,
        keys_values: int,
        width: int,
        gated: bool,
    ) -> KernelTimes:
        """The kernels of one layer on one rank: `inner`, `heads` and `keys_values` (heads of each) are those it has."""
        maps = (
            (hidden, (heads + 2 * keys_values) * width),
            (heads * width, hidden),
            (hidden, inner * (2 if gated else 1)),
            (inner, hidden),
        )
        times = [self.linear(samples * length, *sizes) for sizes in maps]
        forward, backward = (
            self.attention(direction, samples, length, heads, width) for direction in ("forward", "backward")
        )
        return KernelTimes(sum(each[0] for each in times), sum(each[1] for each in times), forward, backward)


class _Grid:
    """Measured rates of one role, and rates between them: linear in the logarithms of all three sizes.

    Beyond the grid the rate is that at its border.
    """

    def __init__(self, rows: Sequence[Product], role: Role) -> None:
        self._rates = {
            (row.m, row.k, row.n): math.log2(1e12 * row.tflops)
            for row in rows
            if (row.data_gradient, row.accumulate) == role
        }
        self._sizes = [sorted({point[axis] for point in self._rates}) for axis in range(3)]

    def rate(self, place: Point) -> float | None:
        """Operations per second; None if nothing was measured."""
        if not self._rates:
            return None
        sides = [_neighbours(sizes, size) for sizes, size in zip(self._sizes, place, strict=True)]
        total = weight = 0.0
        for corner in itertools.product(*sides):
            known = self._rates.get(tuple(size for size, _ in corner))  # type: ignore[arg-type]
            share = math.prod(share for _, share in corner)
            if known is not None and share > 0:
                total, weight = total + share * known, weight + share
        if weight > 0:
            return float(2 ** (total / weight))
        logs = [math.log2(size) for size in place]
        nearest = min(self._rates, key=lambda point: math.dist(logs, [math.log2(size) for size in point]))
        return float(2 ** self._rates[nearest])


def _neighbours(sizes: Sequence[int], wanted: int) -> list[tuple[int, float]]:
    """The measured sizes on both sides of the wanted one, with their weights."""
    after = bisect.bisect_left(sizes, wanted)
    if after == len(sizes):
        return [(sizes[-1], 1.0)]
    if after == 0 or sizes[after] == wanted:
        return [(sizes[after], 1.0)]
    low, high = sizes[after - 1], sizes[after]
    share = math.log2(wanted / low) / math.log2(high / low)
    return [(low, 1.0 - share), (high, share)]


def _between(points: Sequence[tuple[float, float]], place: float) -> float:
    """Linear between points, constant beyond them."""
    after = bisect.bisect_left(points, (place, -math.inf))
    if after == len(points):
        return points[-1][1]
    if after == 0:
        return points[0][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * (place - left) / (right - left)

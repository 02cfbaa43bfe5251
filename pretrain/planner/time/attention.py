"""The time of causal attention in one layer: fused kernels by their measured rates, or the scores written out."""

import bisect
import functools
import math
from dataclasses import dataclass
from typing import Literal

from pretrain.planner.time.hardware import AttentionCurve, Direction, Hardware
from pretrain.planner.time.products import Products

Kernel = Literal["unfused", "fa1", "fa2", "fa3", "cudnn", "efficient", "cpu"]

BACKWARD_OPERATIONS = 2.5
"""Five products against two, as FlashAttention counts (Dao et al. 2022)."""
ROWS_OF_A_BLOCK = 128
"""Queries that one streaming multiprocessor takes at a time."""
SUBSTITUTES: dict[str, tuple[str, ...]] = {
    "efficient": ("fa1", "fa2", "cpu"),
    "cudnn": ("fa3", "fa2", "cpu"),
    "fa3": ("cudnn", "fa2", "cpu"),
    "fa1": ("fa2", "cpu"),
    "fa2": ("fa1", "cudnn", "cpu"),
    "cpu": ("fa2",),
}
"""Kernels whose curve is used if a machine's record lacks one."""
SCORE_BYTES: dict[Direction, float] = {"forward": 10.5, "backward": 15.2}
"""Bytes for each score in 16 bits: masked softmax and dropout read and write once, with the dropout mask; times 1.17,
which was fitted to published step times."""


@dataclass(frozen=True)
class Shape:
    """One call on one rank."""

    samples: int
    seq: int
    heads: int
    head_dim: int


def fused_seconds(
    hardware: Hardware, kernel: str, direction: Direction, shape: Shape, narrow_head_rate: float, share: float
) -> float:
    """`narrow_head_rate`: the rate with heads of 64 columns over that with 128."""
    curve = _curve(hardware, kernel, direction)
    if curve is None:
        return math.inf
    operations = 2.0 * shape.samples * shape.heads * shape.seq * shape.seq * shape.head_dim
    if direction == "backward":
        operations *= BACKWARD_OPERATIONS
    rate = _rate(_points(curve), shape.seq) * 1e12 * share
    if shape.head_dim <= curve.head_dim // 2:
        rate *= narrow_head_rate
    if hardware.kind == "gpu":
        blocks = shape.samples * shape.heads * -(-shape.seq // ROWS_OF_A_BLOCK)
        rate *= min(1.0, blocks / hardware.sms.value)
    return operations / rate + hardware.launch_us.value * 1e-6


def unfused_seconds(products: Products, direction: Direction, shape: Shape, bytes_per_second: float) -> float:
    """Batched products over all pairs of tokens, and the bytes of softmax and dropout between them."""
    batch = shape.samples * shape.heads
    scores = products.seconds(shape.seq, shape.head_dim, shape.seq, batch=batch)
    values = products.seconds(shape.seq, shape.seq, shape.head_dim, batch=batch)
    times = 1 if direction == "forward" else 2
    moved = SCORE_BYTES[direction] * products.width / 2 * batch * shape.seq * shape.seq
    return times * (scores + values) + moved / bytes_per_second


def _curve(hardware: Hardware, kernel: str, direction: Direction) -> AttentionCurve | None:
    for name in (kernel, *SUBSTITUTES.get(kernel, ())):
        for curve in hardware.attention:
            if curve.kernel == name and curve.direction == direction:
                return curve
    return next((curve for curve in hardware.attention if curve.direction == direction), None)


@functools.lru_cache(maxsize=256)
def _points(curve: AttentionCurve) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((math.log2(int(length)), rate) for length, rate in curve.tflops.items()))


def _rate(points: tuple[tuple[float, float], ...], seq: int) -> float:
    """Linear in the logarithm of the length; shorter sequences than measured lose in proportion."""
    place = math.log2(seq)
    after = bisect.bisect_left(points, (place, 0.0))
    if after == 0:
        return points[0][1] * 2 ** (0.5 * (place - points[0][0]))
    if after == len(points):
        return points[-1][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * (place - left) / (right - left)

"""The time of a matrix product, from the tiles that a GPU cuts it into or from measured products."""

import functools
import math
from dataclasses import dataclass

from pretrain.planner.time.hardware import Hardware, Precision, ProductTable

TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64))
"""Rows and columns that one streaming multiprocessor computes at a time."""
SPLITS = (1, 2, 4)
"""Parts into which the depth may be split, when there are fewer tiles than multiprocessors."""
FILL_DEPTH = 150.0
"""Start and end of a tile, as depth of the product that would take equally long."""
SMALL_TILE_LOSS = 0.40
"""Share of the rate that the smallest tile would lose: it loads more bytes for each operation."""
LARGEST_TILE = 256 * 128
RATE_SHARE = 0.975
"""Rate within a tile over the rate of the best product, fitted with FILL_DEPTH and the tiles."""
ACCUMULATE_FACTOR = 1.047
"""Weight gradients that are added to fp32 sums take this much longer."""
NEIGHBOURS = 4
"""Measured products that correct the model at a shape between them."""


@dataclass(frozen=True)
class Products:
    """Predicts the seconds of matrix products on one device."""

    sms: int
    """1 on a CPU, where no tiles are counted."""
    flops: float
    """Operations per second of the best product in a long step."""
    bytes_per_second: float
    launch_seconds: float
    width: int
    """Bytes of an element."""
    table: ProductTable | None = None
    share: float = 1.0
    """Part of the machine that one rank has."""
    sustained: float = 1.0
    """Rate in a long step over that of a short measurement."""

    def seconds(
        self, m: int, k: int, n: int, *, accumulate: bool = False, data_gradient: bool = False, batch: int = 1
    ) -> float:
        """The time of `batch` products [m, k] x [k, n]."""
        if self.table is not None and batch == 1:
            return _from_table(self, m, k, n, accumulate, data_gradient)
        return self._by_tiles(m, k, n, accumulate, batch)

    def _by_tiles(self, m: int, k: int, n: int, accumulate: bool, batch: int) -> float:
        if self.sms == 1:
            compute = 2.0 * batch * m * k * n / self.flops
        else:
            compute = tile_seconds(m, k, n, batch, self.sms, self.flops / self.sms)
        moved = batch * (self.width * (m * k + k * n) + (8 if accumulate else self.width) * m * n)
        if accumulate and self.width < 4:
            compute *= ACCUMULATE_FACTOR
        return max(compute, moved / self.bytes_per_second) + self.launch_seconds


@functools.lru_cache(maxsize=1 << 16)
def tile_seconds(m: int, k: int, n: int, batch: int, sms: int, flops_per_sm: float) -> float:
    """The least time over tile shapes and splits: waves of tiles, each multiprocessor one tile at a time."""
    best = math.inf
    for rows, columns in TILES:
        tiles = -(-m // rows) * -(-n // columns) * batch
        rate = flops_per_sm * (1 - SMALL_TILE_LOSS * (1 - math.sqrt(rows * columns / LARGEST_TILE)))
        for split in SPLITS:
            waves = -(-tiles * split // sms)
            best = min(best, waves * 2.0 * rows * columns * (k / split + FILL_DEPTH) / rate)
            if tiles >= sms:
                break  # splitting only helps if multiprocessors are idle
    return best


@functools.lru_cache(maxsize=1 << 16)
def _from_table(model: Products, m: int, k: int, n: int, accumulate: bool, data_gradient: bool) -> float:
    """A measured product, or the tile model times the ratios at the nearest measured ones."""
    plain = model._by_tiles(m, k, n, accumulate, 1)
    known = _ratios(model, accumulate, data_gradient)
    if not known:
        return plain
    place = (math.log2(m), math.log2(k), math.log2(n))
    nearest = sorted((math.dist(place, other), ratio) for other, ratio in known)[:NEIGHBOURS]
    if nearest[0][0] == 0.0:
        return plain * nearest[0][1]
    weights = [distance**-2 for distance, _ in nearest]
    logs = [math.log(ratio) for _, ratio in nearest]
    return plain * math.exp(sum(w * r for w, r in zip(weights, logs, strict=True)) / sum(weights))


@functools.lru_cache(maxsize=64)
def _ratios(model: Products, accumulate: bool, data_gradient: bool) -> list[tuple[tuple[float, float, float], float]]:
    """Measured over modelled time of each measured product, with the logarithms of its shape."""
    assert model.table is not None
    alike = [row for row in model.table.products if row.accumulate == accumulate] or list(model.table.products)
    rows = [row for row in alike if row.data_gradient == data_gradient] or alike
    found = []
    for row in rows:
        measured = 2.0 * row.m * row.k * row.n / (row.tflops * 1e12 * model.share * model.sustained)
        ratio = measured / model._by_tiles(row.m, row.k, row.n, row.accumulate, 1)
        found.append(((math.log2(row.m), math.log2(row.k), math.log2(row.n)), ratio))
    return found


def products_of(hardware: Hardware, precision: Precision, share: float) -> Products:
    """The products of one rank that has `share` of a machine: all of its GPU, a part of a CPU.

    A precision that the device lacks runs at the rate of fp32.
    """
    rate = hardware.product_tflops.of(precision) or hardware.product_tflops.fp32.value
    table = next((table for table in hardware.products if table.precision == precision), None)
    on_gpu = hardware.kind == "gpu"
    return Products(
        sms=round(hardware.sms.value) if on_gpu else 1,
        flops=rate * 1e12 * hardware.sustained_share.value * share * (RATE_SHARE if on_gpu else 1.0),
        bytes_per_second=hardware.copy_gbps.value * 1e9 * share,
        launch_seconds=hardware.launch_us.value * 1e-6,
        width=4 if precision == "fp32" else 2,
        table=table,
        share=share,
        sustained=hardware.sustained_share.value,
    )

"""Matrix products over a grid of shapes: forward, gradient of the input, gradient of the weight added in fp32."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pretrain.bench.record.timer import SECONDS, Timer
from pretrain.planner.time.hardware import Product

SIZES_ON_CPU = (16, 64, 256, 1024, 4096)
SIZES_ON_GPU = (512, 1024, 2048, 4096, 8192, 16384)
MOST_OPERATIONS_ON_CPU, MOST_OPERATIONS_ON_GPU = 2.2e9, 2.3e12
LONGEST_SECONDS = 0.25
"""A shape that would take longer, by the best rate so far, is left out."""


def measure_products(dtype: torch.dtype, timer: Timer, seconds: float = SECONDS) -> Iterator[Product]:
    """The rates of every shape of the grid, in all three roles."""
    best = 0.0
    for m, k, n in shapes(on_cpu=timer.on_cpu):
        operations = 2.0 * m * k * n
        if best and operations / best > LONGEST_SECONDS:
            continue
        for product in _measure(m, k, n, dtype, timer, seconds):
            best = max(best, 1e12 * product.tflops)
            yield product


def shapes(*, on_cpu: bool) -> list[tuple[int, int, int]]:
    """Rows, depth and columns of the grid, in the order of their operations; the largest are left out."""
    sizes = SIZES_ON_CPU if on_cpu else SIZES_ON_GPU
    most = MOST_OPERATIONS_ON_CPU if on_cpu else MOST_OPERATIONS_ON_GPU
    every = [(m, k, n) for m, k, n in itertools.product(sizes, repeat=3) if 2 * m * k * n <= most]
    return sorted(every, key=math.prod)


def _measure(m: int, k: int, n: int, dtype: torch.dtype, timer: Timer, seconds: float) -> Iterator[Product]:
    # Random numbers: for products of zeros or ones a GPU draws less power and runs unrealistically fast.
    inputs, weight, gradients = (_random(*size, dtype, timer.device) for size in ((m, k), (n, k), (m, n)))
    total = torch.zeros(n, k, dtype=torch.float32, device=timer.device)
    rate = 2.0e-12 * m * k * n
    forward = timer.best(lambda: torch.mm(inputs, weight.t()), seconds)
    yield Product(m, k, n, rate / forward)
    of_input = timer.best(lambda: torch.mm(gradients, weight), seconds)
    yield Product(m, n, k, rate / of_input, data_gradient=True)
    of_weight = timer.best(lambda: total.add_(torch.mm(gradients.t(), inputs)), seconds)
    yield Product(n, m, k, rate / of_weight, accumulate=True)


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(rows, columns, device=device).to(dtype)

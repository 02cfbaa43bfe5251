"""The measured limits of this device: matrix products and copies."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config.derived import micro_batch_size
from pretrain.config.run import RunConfig

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SQUARES_ON_GPU, _SQUARES = (2048, 4096, 8192), (256, 512, 1024)
_COPIED_BYTES_ON_GPU, _COPIED_BYTES = 2**30, 2**28
SECONDS = 0.2
"""Seconds for each product, after a warmup call. The best rate counts: the device may slow down later."""

Shape = tuple[int, int, int]
"""Rows, depth and columns of a product."""


@dataclass(frozen=True)
class Ceilings:
    """The best rates of one device."""

    products: dict[str, float]
    """Operations per second by shape, as rows x depth x columns."""
    bandwidth: float
    """Bytes per second that a copy reads and writes."""

    @property
    def best(self) -> tuple[str, float]:
        """The shape with the highest rate, and that rate."""
        return max(self.products.items(), key=lambda item: item[1])


def measure_ceilings(config: RunConfig, vocab_size: int, device: torch.device) -> Ceilings:
    """Measure the products of `product_shapes` in the run's precision, and the copy of a large buffer."""
    on_gpu, dtype = device.type == "cuda", _DTYPES[config.engine.precision]
    shapes = product_shapes(config, vocab_size, on_gpu=on_gpu)
    products = {" x ".join(map(str, shape)): _product_rate(shape, dtype, device) for shape in shapes}
    return Ceilings(products, _copy_rate(_COPIED_BYTES_ON_GPU if on_gpu else _COPIED_BYTES, device))


def product_shapes(config: RunConfig, vocab_size: int, *, on_gpu: bool) -> Sequence[Shape]:
    """The matrix products to measure: squares, which are larger on a GPU, and the model's."""
    model, tp = config.model, config.parallel.tp
    rows, hidden, ffn = (
        micro_batch_size(config.train) * model.seq_length,
        model.hidden_size,
        model.ffn_hidden_size // tp,
    )
    of_model = ((rows, hidden, ffn), (rows, ffn, hidden), (rows, hidden, -(-vocab_size // (128 * tp)) * 128))
    return [*((size, size, size) for size in (_SQUARES_ON_GPU if on_gpu else _SQUARES)), *of_model]


def _product_rate(shape: Shape, dtype: torch.dtype, device: torch.device) -> float:
    rows, depth, columns = shape
    # Random numbers: for products of zeros or ones a GPU draws less power and runs unrealistically fast.
    left, right = _random(rows, depth, dtype, device), _random(columns, depth, dtype, device)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    seconds = _best_seconds(lambda: torch.mm(left, right.t(), out=out), device)
    return 2.0 * rows * depth * columns / seconds


def _copy_rate(num_bytes: int, device: torch.device) -> float:
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * num_bytes / _best_seconds(lambda: target.copy_(source), device)


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(rows, columns, device=device).to(dtype)


def _best_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The seconds of one call: the best mean over series of calls that are long enough to be timed."""
    _timed(run, 1, device)
    once = _timed(run, 1, device)
    in_a_row = max(1, int(0.02 / once))
    best, deadline = once, time.perf_counter() + SECONDS
    while time.perf_counter() < deadline:
        best = min(best, _timed(run, in_a_row, device) / in_a_row)
    return best


def _timed(run: Callable[[], object], times: int, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

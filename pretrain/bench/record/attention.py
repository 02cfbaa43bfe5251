"""Causal attention by length, width of a head and direction, through the product's own attention."""

from collections.abc import Iterator

import torch

from pretrain.bench.record.timer import SECONDS, Timer
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.planner.time.hardware import AttentionCurve

WIDTHS_ON_CPU, WIDTHS_ON_GPU = (16, 32, 64, 128), (64, 128)
LENGTHS_ON_CPU, LENGTHS_ON_GPU = (32, 64, 128, 256, 512, 1024), (512, 1024, 2048, 4096, 8192, 16384)
TOKENS_ON_CPU, TOKENS_ON_GPU = 1024, 16384
HEADS_ON_CPU, HEADS_ON_GPU = 2, 16


def measure_attention(dtype: torch.dtype, kernel: str, timer: Timer, source: str) -> Iterator[AttentionCurve]:
    """A curve forward and one backward for each width; only the lower triangle's operations count."""
    for width in WIDTHS_ON_CPU if timer.on_cpu else WIDTHS_ON_GPU:
        forward: dict[str, float] = {}
        backward: dict[str, float] = {}
        for length in LENGTHS_ON_CPU if timer.on_cpu else LENGTHS_ON_GPU:
            forward[str(length)], backward[str(length)] = _rates(length, width, dtype, timer)
        yield AttentionCurve(kernel, "forward", width, "measured", source, forward)
        yield AttentionCurve(kernel, "backward", width, "measured", source, backward)


def _rates(length: int, width: int, dtype: torch.dtype, timer: Timer) -> tuple[float, float]:
    """TFLOP/s forward and backward."""
    with megatron_imports():
        from pretrain.model.attention import attend

    heads = HEADS_ON_CPU if timer.on_cpu else HEADS_ON_GPU
    samples = max(1, (TOKENS_ON_CPU if timer.on_cpu else TOKENS_ON_GPU) // length)
    query, key, value = (
        torch.randn(length, samples, heads, width, device=timer.device).to(dtype).requires_grad_() for _ in range(3)
    )
    tensors = (query, key, value)
    with torch.no_grad():
        forward = timer.best(lambda: attend(query, key, value, None), SECONDS)
    output = attend(query, key, value, None)
    gradient = torch.randn_like(output)
    backward = timer.best(lambda: torch.autograd.grad(output, tensors, gradient, retain_graph=True), SECONDS)
    operations = 2e-12 * samples * heads * length**2 * width  # two products of s x s x d, half of each
    return operations / forward, 2.5 * operations / backward

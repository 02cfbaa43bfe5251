"""Passes over memory: copies, sums, the loss, an embedding's gradient, the update."""

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.bench.record.timer import Timer
from pretrain.distributed.vendor_imports import megatron_imports

COPIED_ON_CPU, COPIED_ON_GPU = 2**26, 2**30
SUMMED_ON_CPU, SUMMED_ON_GPU = 2**22, 2**28
"""Bytes of each tensor. On a CPU those of small models, which fit in its caches."""
PARAMETERS_ON_CPU, PARAMETERS_ON_GPU = 2**21, 2**28
SECONDS = 0.2
"""Seconds for each measurement."""
VOCABULARY = 4096
TOKENS = (256, 1024, 4096)
"""Tokens of the measured losses. Larger tensors are slower: each gets fresh memory from the system."""
TABLE = (8192, 128)


def copy_rate(timer: Timer) -> float:
    """GB/s that a large copy reads and writes."""
    size = COPIED_ON_CPU if timer.on_cpu else COPIED_ON_GPU
    source = torch.zeros(size, dtype=torch.uint8, device=timer.device)
    target = torch.zeros_like(source)
    return 2e-9 * size / timer.best(lambda: target.copy_(source), SECONDS)


def sum_rate(dtype: torch.dtype, timer: Timer) -> float:
    """GB/s that the sum of two tensors reads and writes."""
    size = SUMMED_ON_CPU if timer.on_cpu else SUMMED_ON_GPU
    left = torch.ones(size // dtype.itemsize, dtype=dtype, device=timer.device)
    right = torch.ones_like(left)
    return 3e-9 * size / timer.best(lambda: left + right, SECONDS)


def launch_seconds(timer: Timer) -> float:
    """Seconds from one tiny operation to the next in a long series."""
    one = torch.ones(1, device=timer.device)

    def series() -> None:
        for _ in range(1000):
            one.add_(1.0)

    return timer.best(series, SECONDS) / 1000


def update_seconds(timer: Timer) -> float:
    """Seconds of AdamW's fused update for each parameter, with the norm of the gradient."""
    number = PARAMETERS_ON_CPU if timer.on_cpu else PARAMETERS_ON_GPU
    parameter = torch.nn.Parameter(torch.zeros(number, device=timer.device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, fused=True)

    def update() -> None:
        assert parameter.grad is not None
        parameter.grad.norm()
        optimizer.step()

    return timer.best(update, SECONDS) / number


def loss_seconds(cross_entropy: str, dtype: torch.dtype, tokens: int, timer: Timer) -> float:
    """Seconds for each logit, forward and backward together."""
    hidden = torch.randn(tokens, 1, VOCABULARY, device=timer.device).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (tokens, 1), device=timer.device)

    def both_passes() -> None:
        # Nothing else may refer to the logits, or in_place copies them.
        _loss(cross_entropy, hidden * 1, labels).mean().backward()
        hidden.grad = None

    def copy_alone() -> None:
        (hidden * 1).backward(hidden)
        hidden.grad = None

    return max(timer.best(both_passes, SECONDS) - timer.best(copy_alone, SECONDS), 0.0) / (tokens * VOCABULARY)


def _loss(cross_entropy: str, logits: Tensor, labels: Tensor) -> Tensor:
    if cross_entropy == "in_place":
        with megatron_imports():
            from pretrain.model.cross_entropy import EAGER, in_place_cross_entropy

        real = logits.shape[-1]
        return in_place_cross_entropy(logits, labels, first=0, real=real, group=None, passes=EAGER)
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")


def table_seconds(timer: Timer) -> float:
    """Seconds for each element of an embedding table: a gradient of the whole table is made and added."""
    table = torch.nn.Parameter(torch.zeros(*TABLE, device=timer.device))
    tokens = torch.zeros(8, dtype=torch.long, device=timer.device)
    table.grad = torch.zeros_like(table)

    def look_up() -> None:
        functional.embedding(tokens, table).sum().backward()

    return timer.best(look_up, SECONDS) / (TABLE[0] * TABLE[1])

"""Time and memory of the output layer and its loss, forward and backward, with each engine.cross_entropy.

    python -m tests.benchmarks.cross_entropy [tokens hidden columns]

All ways in turn on the CPU, in fp32 and bf16, as shares of the plain way. Bytes are those of the pretend device (exact
sizes of what a GPU would hold, hidden states, weight and both gradients included) and do not depend on the machine.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.distributed.vendor_imports import megatron_imports

with megatron_imports():
    from pretrain.model.chunked_cross_entropy import Columns, chunked_cross_entropy
    from pretrain.model.cross_entropy import EAGER, in_place_cross_entropy
from pretrain.pretend import device as pretend

WARM_UP, TIMED = 1, 3
SHAPE = (4096, 256, 32768)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = (hidden @ weight.T).flatten(0, 1).float()
    return functional.cross_entropy(logits, labels.flatten(), reduction="none")


def in_place(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return in_place_cross_entropy(hidden @ weight.T, labels, first=0, real=len(weight), group=None, passes=EAGER)


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    columns = Columns(first=0, real=len(weight), group=None, cut_sequence=False)
    return chunked_cross_entropy(hidden, weight, labels, columns, EAGER)


WAYS: dict[str, Callable[..., Tensor]] = {"plain": plain, "in_place": in_place, "chunked": chunked}


def given(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, the layer's weight, and labels."""
    tokens, width, columns = shape
    hidden = torch.randn(tokens, 1, width, dtype=dtype, device=device).requires_grad_()
    weight = (torch.randn(columns, width, dtype=dtype, device=device) / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(columns, (tokens, 1), device=device)


def seconds(way: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    started = time.perf_counter()
    way(*inputs).mean().backward()
    return time.perf_counter() - started


def peak_bytes(way: Callable[..., Tensor], shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    with pretend.PretendGpu(compute=False):
        inputs = given(shape, dtype, pretend.device())
        pretend.ledger.begin()
        way(*inputs).mean().backward()
        return pretend.ledger.peak


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:]]
    shape = (numbers[0], numbers[1], numbers[2]) if numbers else SHAPE
    tokens, width, columns = shape
    pretend.device()  # torch has to know the device before its first backward pass
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {TIMED} turns")
    print(f"{tokens} tokens, hidden {width}, {columns} columns")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = given(shape, dtype, torch.device("cpu"))
        taken: dict[str, list[float]] = {name: [] for name in WAYS}
        for turn in range(WARM_UP + TIMED):
            for name, way in WAYS.items():
                spent = seconds(way, inputs)
                if turn >= WARM_UP:
                    taken[name].append(spent)
        medians = {name: statistics.median(values) for name, values in taken.items()}
        peaks = {name: peak_bytes(way, shape, dtype) for name, way in WAYS.items()}
        for name in WAYS:
            print(
                f"{dtype} {name}: {medians[name]:.2f} s, {medians[name] / medians['plain']:.2f} of plain; "
                f"{peaks[name] / 2**20:.0f} MiB, {peaks[name] / peaks['plain']:.2f} of plain"
            )


if __name__ == "__main__":
    main()

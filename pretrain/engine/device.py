"""A device that works while the host goes on: copies to it that nobody waits for, and times on its own clock."""

import time

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; on a GPU the copy is under way when this returns, and later work there follows it.

    Only from pinned memory does the host not wait. A copy is pinned with the strides of the original, which fails for a
    view whose elements share memory (torch 2.13): such a view becomes a plain tensor first. Integers, which are tokens
    here, cross in 32 bits.
    """
    if device.type == "cpu":
        return tensor
    narrow = tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
    return narrow.contiguous().pin_memory().to(device, non_blocking=True).to(tensor.dtype)


class Stopwatch:
    """Seconds between marks, on a GPU those at which it gets there; asked for after the host has waited for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self, first: int) -> float:
        """From mark `first` to the one after it."""
        begin, end = self._marks[first : first + 2]
        if isinstance(begin, float) or isinstance(end, float):
            return float(end) - float(begin)  # type: ignore[arg-type]
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

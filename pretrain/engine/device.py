"""Copies to a device, and times measured on it, for which the host does not wait."""

import time

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to `device`. On a GPU this returns before the copy is finished; later work on the GPU waits for it.

    The host does not wait only if the memory is pinned. Pinning keeps the strides of the original, which fails for an
    expanded view (torch 2.13), so the tensor is made contiguous first. int64 tensors hold tokens here: they are sent in
    32 bits.
    """
    if device.type == "cpu":
        return tensor
    narrow = tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
    return narrow.contiguous().pin_memory().to(device, non_blocking=True).to(tensor.dtype)


class Stopwatch:
    """Seconds between marks. On a GPU a mark is the time at which the GPU reaches it."""

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
        """Seconds from mark `first` to the next one. On a GPU this waits until the GPU has reached both."""
        start, end = self._marks[first : first + 2]
        if isinstance(start, float) or isinstance(end, float):
            return float(end) - float(start)  # type: ignore[arg-type]
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

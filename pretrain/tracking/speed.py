"""The speed of a run: the time of each part of a step, tokens per second, MFU, memory."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psutil

from pretrain.model.flops import TokenFlops

Part = Literal["data", "forward_backward", "optimizer"]
Precision = Literal["fp32", "bf16", "fp16"]

_GIB = 2**30


class StepClock:
    """Adds up the time of steps between two log points.

        with clock.part("data"):
            batch = next(batches)
        ...
        clock.end_step(tokens)
        if step % log_every_steps == 0:
            values |= clock.take()

    Time inside `outside()` (validation, saving) does not count. On a GPU a part ends when the host continues, so it is
    exact only if the step waits for the device. The time of a step, and the speed computed from it, are exact over an
    interval that ends with such a wait.
    """

    def __init__(
        self,
        flops: TokenFlops,
        num_devices: int,
        peak: "DevicePeak | None",
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops = flops
        self._num_devices = num_devices
        self._peak = peak
        self._now = now
        self._step_began: float | None = None
        self._reset()

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the time of the block as `name`; the first block of a run begins its first step."""
        began = self._now()
        if self._step_began is None:
            self._step_began = began
        yield
        self.add(name, self._now() - began)

    def add(self, name: Part, seconds: float) -> None:
        """Count time as `name` that was measured elsewhere, within the step."""
        self._parts[name] += seconds

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leave the time of the block out."""
        began = self._now()
        yield
        if self._step_began is not None:
            self._step_began += self._now() - began

    def end_step(self, tokens: int) -> None:
        """Count the step that ends here, and its tokens over all ranks."""
        assert self._step_began is not None, "a step without a part"
        ended = self._now()
        self._seconds += ended - self._step_began
        self._step_began = ended
        self._tokens += tokens
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Means per step since the last call, by the names of the train record; empty if there was no step.

        tflops is per device, by 6N + 6Lhs; mfu_* are shares of the peak, missing if the peak is unknown.
        """
        steps, tokens, seconds, parts = self._steps, self._tokens, self._seconds, self._parts
        self._reset()
        if steps == 0 or seconds <= 0:
            return {}
        per_device = tokens / seconds / self._num_devices
        values = {
            "tokens_per_second": tokens / seconds,
            "tflops": per_device * self._flops.six_n_6lhs / 1e12,
            "seconds_step": seconds / steps,
        }
        values |= {f"seconds_{name}": part / steps for name, part in parts.items()}
        if self._peak is not None:
            for name in ("six_n", "six_n_6lhs", "six_n_12lhs"):
                share = per_device * getattr(self._flops, name) / self._peak.flops
                values[f"mfu_{name.replace('six_n', '6n')}"] = share
        return values

    def _reset(self) -> None:
        self._parts: dict[Part, float] = {"data": 0.0, "forward_backward": 0.0, "optimizer": 0.0}
        self._seconds = 0.0
        self._tokens = 0
        self._steps = 0


@dataclass(frozen=True)
class DevicePeak:
    """The most operations per second that one device can do, and where the number comes from."""

    flops: float
    source: Literal["configured", "table", "measured"]


def device_peak(configured_tflops: float | None, gpu_name: str | None, precision: Precision) -> DevicePeak | None:
    """The peak for MFU: as configured, from the table by the GPU's name, or measured if there is no GPU."""
    if configured_tflops is not None:
        return DevicePeak(configured_tflops * 1e12, "configured")
    if gpu_name is None:
        return DevicePeak(_measure_cpu_flops(precision), "measured")
    flops = peak_flops(gpu_name, precision)
    return None if flops is None else DevicePeak(flops, "table")


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Dense peak of the chip with this name; None for an unknown chip, a MIG part, or a precision it lacks."""
    if re.search(r"\bMIG\b", device_name):
        return None
    for pattern, half, bf16, fp32 in _CHIPS:
        if re.search(pattern, device_name):
            tflops = {"fp16": half, "bf16": bf16, "fp32": fp32}[precision]
            return None if tflops is None else tflops * 1e12
    return None


# TFLOP/s without sparsity, with fp32 accumulation: fp16, bf16, fp32 outside the TF32 units. The first match counts.
_CHIPS: tuple[tuple[str, float, float | None, float], ...] = (
    (r"\bGB200\b", 2500, 2500, 80),  # NVIDIA GB200 NVL72 datasheet, a 72nd of the rack, half of what sparsity gives
    (r"\bB300\b", 2250, 2250, 75),  # NVIDIA HGX B300 specifications, an eighth of the board
    (r"\bB200\b", 2250, 2250, 75),  # NVIDIA DGX/HGX B200 datasheet, an eighth of the board
    (r"\bH[12]00 NVL\b", 835.5, 835.5, 60),  # NVIDIA H100 and H200 datasheets, NVL column
    (r"\bG?H200\b", 989.4, 989.4, 66.9),  # NVIDIA H200 datasheet: the GH100 of the H100 SXM
    (r"\bH100 PCIe\b", 756, 756, 51.2),  # NVIDIA H100 datasheet, PCIe column
    (r"\bH100\b", 989.4, 989.4, 66.9),  # NVIDIA H100 whitepaper, SXM5
    (r"\bA100\b", 312, 312, 19.5),  # NVIDIA A100 datasheet
    (r"\bL40S\b", 362, 362, 91.6),  # NVIDIA L40S datasheet
    (r"\bL40\b", 181, 181, 90.5),  # NVIDIA L40 datasheet: 362 with sparsity
    (r"\bL4\b", 121, 121, 30.3),  # NVIDIA L4 datasheet: 242 with sparsity
    (r"\bA10\b", 125, 125, 31.2),  # NVIDIA A10 datasheet
    (r"\bA10G\b", 70, 70, 35),  # NVIDIA A10G datasheet (AWS): 140 with sparsity
    (r"\bRTX A6000\b", 154.8, 154.8, 38.7),  # NVIDIA GA102 whitepaper
    (r"\bV100-PCIE\b", 112, None, 14),  # NVIDIA V100 datasheet, PCIe column; no bf16 units
    (r"\bV100\b", 125, None, 15.7),  # NVIDIA V100 datasheet, SXM2
    (r"\bT4\b", 65, None, 8.1),  # NVIDIA T4 datasheet; no bf16 units
    (r"\bRTX 3090\b(?! Ti)", 71, 71, 35.6),  # NVIDIA GA102 whitepaper
    (r"\bRTX 4090\b(?! D| Laptop)", 165.2, 165.2, 82.6),  # NVIDIA Ada whitepaper
    (r"\bRTX 5090\b(?! D| Laptop)", 209.5, 209.5, 104.8),  # NVIDIA RTX Blackwell whitepaper
    (r"\bMI250X\b", 191.5, 191.5, 23.95),  # AMD MI250X datasheet, halved: each of its two dies is a device to torch
    (r"\bMI300X\b", 1307.4, 1307.4, 163.4),  # AMD MI300X datasheet
)


def _measure_cpu_flops(precision: Precision, limit_seconds: float = 0.2) -> float:
    """The best of a few matrix products in this precision with the threads that this process computes with."""
    import torch

    size, dtype = 512, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    deadline = time.perf_counter() + limit_seconds
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def memory_use() -> dict[str, float]:
    """Resident memory of this process, and the peak allocated on its GPU if it uses one, in GiB."""
    values = {"host_memory_gib": psutil.Process().memory_info().rss / _GIB}
    # A process that uses a GPU has imported torch already; importing it here would only cost seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        values["device_memory_gib"] = torch.cuda.max_memory_allocated() / _GIB
    return values

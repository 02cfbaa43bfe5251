"""The shortest time of one call on a device."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pretrain.bench.ceilings import synchronize

SECONDS = 0.05
"""Seconds for each measurement."""
SERIES_SECONDS = 0.01
"""On a GPU calls are timed in series of at least this length."""
LEAST = 3


@dataclass(frozen=True)
class Timer:
    """Times calls on one device.

    On a CPU with one thread the time is that of the thread: other programs on the machine then do not count. The least
    time counts, because everything that disturbs a call makes it longer.
    """

    device: torch.device
    threads: int

    def best(self, call: Callable[[], object], seconds: float = SECONDS) -> float:
        """Seconds of one call, after one that does not count."""
        call()
        in_a_row = 1 if self.on_cpu else max(1, int(SERIES_SECONDS / max(self._timed(call, 1), 1e-9)))
        best, calls, deadline = float("inf"), 0, time.perf_counter() + seconds
        while calls < LEAST or time.perf_counter() < deadline:
            best = min(best, self._timed(call, in_a_row) / in_a_row)
            calls += 1
        return max(best, 1e-9)

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def now(self) -> float:
        """This timer's clock, in seconds, once the device has done its work."""
        synchronize(self.device)
        return time.thread_time() if self.counts_thread else time.perf_counter()

    @property
    def counts_thread(self) -> bool:
        """Whether the time is that of this thread only."""
        return self.on_cpu and self.threads == 1

    def _timed(self, call: Callable[[], object], times: int) -> float:
        began = self.now()
        for _ in range(times):
            call()
        return self.now() - began

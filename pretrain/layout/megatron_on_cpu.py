"""Megatron-core 0.16.1 on a machine without a GPU.

It names the GPU outright (`device="cuda"`, `torch.cuda.current_device()`, CUDA generator states). Where torch sees no
GPU those names are redirected to the CPU; where it sees one, nothing here is called and Megatron is left as it is.
"""

import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from pretrain.layout.vendor_imports import megatron_imports

CPU = torch.device("cpu")
FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange", "rand", "randn")


def redirect() -> None:
    """Send Megatron's GPU tensors and random states to the CPU; a second call does nothing."""
    with megatron_imports():
        from megatron.core.pipeline_parallel import schedules
        from megatron.core.tensor_parallel import random as megatron_random
    if isinstance(schedules.torch, _TorchOnCpu):
        return
    torch.cuda.current_device = lambda: CPU  # type: ignore[assignment, return-value]
    schedules.torch = _TorchOnCpu()
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)  # type: ignore[assignment]
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    megatron_random.CudaRNGStatesTracker = _tracker_class(megatron_random.CudaRNGStatesTracker)


class _TorchOnCpu(ModuleType):
    """Stands for `torch` inside one module: factory functions make CPU tensors whatever device is named."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if name not in FACTORIES:
            return value

        @functools.wraps(value)
        def on_cpu(*args: Any, **kwargs: Any) -> Any:
            if "device" in kwargs:
                kwargs["device"] = CPU
            return value(*args, **kwargs)

        return on_cpu


def _tracker_class(base: type) -> type:
    """Megatron's tracker of named random states, forking the CPU generator."""

    class CpuRngStatesTracker(base):
        @contextlib.contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    return CpuRngStatesTracker

"""Megatron-core 0.16.1 on a machine without a GPU.

It names the GPU outright (`device="cuda"`, `torch.cuda.current_device()`, CUDA generator states). Where the run is on
another device those names are redirected there, random states to the CPU's; on a GPU nothing here is called and
Megatron is left as it is.
"""

import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from pretrain.distributed.vendor_imports import megatron_imports

FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange", "rand", "randn")


def redirect(device: torch.device) -> None:
    """Send Megatron's GPU tensors to `device`, its random states to the CPU; a later call may name another device."""
    with megatron_imports():
        from megatron.core.pipeline_parallel import schedules
        from megatron.core.tensor_parallel import random as megatron_random
    torch.cuda.current_device = lambda: device  # type: ignore[assignment, return-value]
    is_first = not isinstance(schedules.torch, _TorchOn)
    schedules.torch = _TorchOn(device)
    if not is_first:
        return
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)  # type: ignore[assignment]
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    megatron_random.CudaRNGStatesTracker = _tracker_class(megatron_random.CudaRNGStatesTracker)


class _TorchOn(ModuleType):
    """Replaces `torch` inside one module: factory functions make tensors here, whatever device is named."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("torch")
        self._device = device

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if name not in FACTORIES:
            return value

        @functools.wraps(value)
        def made_here(*args: Any, **kwargs: Any) -> Any:
            if "device" in kwargs:
                kwargs["device"] = self._device
            return value(*args, **kwargs)

        return made_here


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

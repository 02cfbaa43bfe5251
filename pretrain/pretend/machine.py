"""The program on a machine with a pretend GPU (device.py), in a process of its own:

    with on_pretend_gpu():

In the context `device.ledger` has bytes and waits of this rank's device. Values equal the CPU's to the last bit.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from pretrain.distributed import runtime
from pretrain.pretend import device as pretend
from pretrain.pretend.device import PretendGpu, PretendTensor, ledger

MEMORY = 64 * 2**30


@contextlib.contextmanager
def on_pretend_gpu(*, compute: bool = True) -> Iterator[PretendGpu]:
    """Whatever device a configuration names, the program takes the pretend one."""
    from pretrain.distributed.vendor_imports import megatron_imports

    with megatron_imports():
        from pretrain.model import attention

    before, device = get_accelerator(), pretend.device()
    set_accelerator(PretendAccelerator())
    with (
        mock.patch.object(runtime, "choose_device", lambda wanted, local_rank: device),
        mock.patch.object(attention, "scaled_dot_product_attention", _attention),
        mock.patch.object(dist, "new_group", _new_group),
        mock.patch.object(dist.distributed_c10d, "_get_object_coll_device", _device_of_objects),
        PretendGpu(compute=compute) as gpu,
    ):
        yield gpu
    set_accelerator(before)


def without_values() -> contextlib.AbstractContextManager[PretendGpu]:
    """As `on_pretend_gpu`, computing nothing."""
    return on_pretend_gpu(compute=False)


class PretendAccelerator(CPU_Accelerator):
    """DeepSpeed's questions about the device (deepspeed 0.19.8), answered as for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._name = pretend.NAME

    def is_synchronized_device(self) -> bool:
        return False

    def device_name(self, device_index: int | None = None) -> str:
        return pretend.NAME if device_index is None else f"{pretend.NAME}:{device_index}"

    def device(self, device_index: int | None = None) -> torch.device:
        return pretend.device()

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return str(pretend.device())

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == pretend.NAME

    def synchronize(self, device_index: int | None = None) -> None:
        ledger.wait("synchronize")

    def is_fp16_supported(self) -> bool:
        return True

    @property
    def Stream(self) -> Any:
        return PretendStream

    def current_stream(self, device_index: int | None = None) -> "PretendStream":
        return PretendStream()

    default_stream = current_stream

    @property
    def Event(self) -> Any:
        return PretendEvent

    _torch_pins_host_memory = True

    def pin_memory(self, tensor: torch.Tensor, make_copy: bool = True, match_shape: bool = True) -> torch.Tensor:
        return tensor.pin_memory() if make_copy or match_shape else tensor.new_empty(tensor.numel()).pin_memory()

    def memory_allocated(self, device_index: int | None = None) -> int:
        return ledger.now

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        return ledger.peak

    def total_memory(self, device_index: int | None = None) -> int:
        return MEMORY

    def available_memory(self, device_index: int | None = None) -> int:
        return MEMORY - ledger.now


class PretendStream:
    """A queue of work that is done as soon as it is given."""

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> "PretendEvent":
        return event or PretendEvent()

    def synchronize(self) -> None:
        ledger.wait("synchronize")


class PretendEvent:
    """A mark in a queue of work, which the device has not reached whenever the host asks."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        ledger.wait("synchronize")


_sdpa = torch.nn.functional.scaled_dot_product_attention
_make_group = dist.new_group


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    """By the kernel that the CPU takes: torch itself would write out all scores on a device that it does not know."""
    plain = options.get("dropout_p") == 0.0 and options.get("is_causal")
    if isinstance(query, PretendTensor) and plain and torch.backends.cuda.flash_sdp_enabled():
        context, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
        return context
    return _sdpa(query, key, value, **options)


def _device_of_objects(group: Any = None) -> torch.device:
    """Pickled objects go where the group's tensors are."""
    group = group or dist.group.WORLD
    name = group.group_name
    return torch.device("cpu") if name in pretend.host_groups else pretend.device()


def _new_group(*args: Any, **kwargs: Any) -> Any:
    """A group that names gloo is the host's, as beside NCCL; the others are the device's, by gloo all the same."""
    group = _make_group(*args, **kwargs)
    if kwargs.get("backend") == "gloo" and isinstance(group, dist.ProcessGroup):
        pretend.host_groups.add(group.group_name)
    return group

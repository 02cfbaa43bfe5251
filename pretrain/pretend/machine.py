"""The program on a machine with a pretend GPU (device.py), in a process of its own:

    with on_pretend_gpu():

In the context `device.ledger` has bytes and waits of this rank's device. Values equal the CPU's to the last bit.
REPLACEMENTS lists everything of the program and its vendors that is replaced for it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch.nn import functional

from pretrain.distributed import runtime
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.pretend import device as pretend
from pretrain.pretend.device import PretendGpu, PretendTensor
from pretrain.pretend.ledger import ledger

with megatron_imports():
    from pretrain.model import attention

MEMORY = 64 * 2**30
"""Bytes of the device, unless a caller says otherwise."""


@dataclass(frozen=True)
class Replacement:
    """An attribute that is replaced for as long as the device is there."""

    owner: Any
    name: str
    value: Any
    version: str
    """The version of the vendor that it was written for."""
    reason: str


@contextlib.contextmanager
def on_pretend_gpu(*, compute: bool = True, memory: int = MEMORY, alone: bool = False) -> Iterator[PretendGpu]:
    """Whatever device a configuration names, the program takes the pretend one, of `memory` bytes.

    `alone`: process groups of any size have this process as their only one. Collectives return at once.
    """
    before = get_accelerator()
    set_accelerator(PretendAccelerator(memory))
    with contextlib.ExitStack() as stack:
        for item in REPLACEMENTS + (ALONE if alone else ()):
            stack.enter_context(replaced(item.owner, item.name, item.value))
        yield stack.enter_context(PretendGpu(compute=compute))
    set_accelerator(before)


def without_values() -> contextlib.AbstractContextManager[PretendGpu]:
    """As `on_pretend_gpu`, computing nothing."""
    return on_pretend_gpu(compute=False)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute within the context."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class PretendAccelerator(CPU_Accelerator):
    """DeepSpeed's questions about the device (deepspeed 0.19.8), answered as for a GPU."""

    def __init__(self, memory: int = MEMORY) -> None:
        super().__init__()
        self._name, self._memory = pretend.NAME, memory

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
        return self._memory

    def available_memory(self, device_index: int | None = None) -> int:
        return self._memory - ledger.now


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


_sdpa: Callable[..., torch.Tensor] = torch.nn.functional.scaled_dot_product_attention
_make_group = dist.new_group


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    """By the kernel that the CPU takes: torch itself would write out all scores on a device that it does not know.

    Without values it stands for all kernels of a GPU that store no scores: they keep tensors of the same shapes, and
    compute the mask of dropout again instead of keeping it.
    """
    plain = options.get("dropout_p") == 0.0 and torch.backends.cuda.flash_sdp_enabled()
    stores_no_scores = plain if pretend.computes() else _may_store_no_scores()
    bias = options.get("attn_mask")
    marked = bias if isinstance(bias, _LowerRight) else None
    if isinstance(query, PretendTensor) and (options.get("is_causal") or marked is not None) and stores_no_scores:
        mask = marked.numbers(query) if marked is not None and pretend.computes() else None
        by_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        context: torch.Tensor
        context, _ = by_kernel(query, key, value, 0.0, marked is None, attn_mask=mask)
        return context
    if marked is not None:
        options["attn_mask"] = marked.numbers(query)
    return _sdpa(query, key, value, **options)


@dataclass(frozen=True)
class _LowerRight:
    """The mark of a causal mask whose last query sees all keys. Kernels of a GPU need no numbers."""

    queries: int
    keys: int
    device: torch.device
    window: int | None

    def numbers(self, query: torch.Tensor) -> torch.Tensor:
        seen = torch.ones(self.queries, self.keys, dtype=torch.bool, device=query.device).tril(self.keys - self.queries)
        if self.window is not None:
            seen = seen.triu(self.keys - self.queries - self.window + 1)
        return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, -math.inf)


_rms: Callable[..., torch.Tensor] = functional.rms_norm


def _rms_norm(
    hidden: torch.Tensor, shape: list[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """Torch writes out the formula on a device that it does not know, and keeps copies in fp32.

    Without values it is CUDA's kernel, which keeps its input and one number for each row.
    """
    if pretend.computes() or weight is None or not isinstance(hidden, PretendTensor):
        return _rms(hidden, shape, weight, eps)
    normed: torch.Tensor = _FusedRmsNorm.apply(hidden, weight)
    return normed


class _FusedRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        statistics = torch.empty((*hidden.shape[:-1], 1), dtype=torch.float32, device=hidden.device)
        ctx.save_for_backward(hidden, weight, statistics)
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight, _statistics = ctx.saved_tensors
        return torch.empty_like(hidden), torch.empty_like(weight)


def _may_store_no_scores() -> bool:
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()


def _device_of_objects(group: Any = None) -> torch.device:
    """Pickled objects go where the group's tensors are."""
    group = group or dist.group.WORLD
    return torch.device("cpu") if group.group_name in pretend.host_groups else pretend.device()


def _new_group(*args: Any, **kwargs: Any) -> Any:
    """A group that names gloo is the host's, as beside NCCL; the others are the device's, by gloo all the same."""
    group = _make_group(*args, **kwargs)
    if kwargs.get("backend") == "gloo" and isinstance(group, dist.ProcessGroup):
        pretend.host_groups.add(group.group_name)
    return group


def _new_group_alone(*args: Any, **kwargs: Any) -> Any:
    group = _make_group(*args, **{**kwargs, "backend": "fake"})
    if kwargs.get("backend") == "gloo" and isinstance(group, dist.ProcessGroup):
        pretend.host_groups.add(group.group_name)
    return group


_join_group = dist.init_process_group


def _join_alone(backend: str, **settings: Any) -> None:
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  # which registers the backend

    _join_group("fake", **settings)


TORCH = "torch 2.13"
REPLACEMENTS = (
    Replacement(
        functional,
        "rms_norm",
        _rms_norm,
        TORCH,
        "the formula that torch writes out keeps more memory than the kernel of a GPU",
    ),
    Replacement(
        runtime,
        "choose_device",
        lambda wanted, local_rank: pretend.device(),
        "this program",
        "the device is neither a CPU nor a GPU; Megatron's GPU tensors go to it by megatron_on_cpu.redirect",
    ),
    Replacement(
        attention,
        "scaled_dot_product_attention",
        _attention,
        TORCH,
        "torch chooses a kernel by the type of the device, and stores all scores on one that it does not know",
    ),
    Replacement(
        attention,
        "lower_right",
        _LowerRight,
        TORCH,
        "the mark is a tensor of its own class, which cannot be made beside tensors of the device's",
    ),
    Replacement(
        dist,
        "new_group",
        _new_group,
        TORCH,
        "gloo serves both the device's groups and the host's, and only their names differ",
    ),
    Replacement(
        dist.distributed_c10d,
        "_get_object_coll_device",
        _device_of_objects,
        TORCH,
        "it asks the backend of a group for its device, which is gloo's",
    ),
)
"""Beside them: PretendAccelerator, DeepSpeed's own seam for devices."""
ALONE = (
    Replacement(dist, "new_group", _new_group_alone, TORCH, "the other ranks of a group do not exist"),
    Replacement(dist, "init_process_group", _join_alone, TORCH, "the other ranks do not exist"),
)

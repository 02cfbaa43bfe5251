"""A pretend GPU: tensors of the device `pretend:0`, whose values the CPU computes, to the same last bit.

It shows without a GPU what otherwise only a GPU shows. It refuses what CUDA refuses: one operation on tensors of two
devices, `.numpy()`, a generator of the host, a collective of the device's ranks on tensors of the host. It writes down
what makes the host wait, by the place that asks for it, and the bytes that live on the device, now and at most.

With `compute=False` nothing is computed, and nothing large is allocated, on the host neither: numbers that the host
reads are 1, and only shapes, bytes, collectives and the flow of control are real.

Written against torch 2.13. machine.py makes the program take this device.
"""

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.pretend import hollow
from pretrain.pretend.arguments import raw_arguments, tensors_in
from pretrain.pretend.hollow import HollowTensor
from pretrain.pretend.ledger import Collective, ledger

aten = torch.ops.aten
NAME = "pretend"
SIZED = {
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "_unique2",
}
"""Operations whose result is a number for the host, or has a size that only the device knows."""


@functools.cache
def device() -> torch.device:
    """The device; torch comes to know its name in this process, for good."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    _register()
    return torch.device(NAME, 0)


def _register() -> None:
    """Register the operations that make a tensor: they have no tensor argument to dispatch by."""
    everything, by_name = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(lambda func, *args, **kwargs: _perform(func, args, kwargs), "PrivateUse1")
    # torch.tensor makes and fills a tensor where the fallback cannot be called; for a device that has no silu_backward,
    # as CPUs and GPUs have, torch takes it apart.
    for func in (aten.empty_strided.default, aten.copy_.default, aten.silu_backward.default):
        perform = functools.partial(_call, func)
        by_name.impl(func.overloadpacket.__name__, perform, "PrivateUse1")
    _libraries.extend((everything, by_name))  # which end with their object


def _call(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _perform(func, args, kwargs)


pinned: set[int] = set()
"""Storages on the host from which a copy to the device goes by itself."""
host_groups: set[str] = set()
"""Process groups whose tensors are the host's (machine.py)."""
_computes = True
_libraries: list[torch.library.Library] = []
_data: Any = torch._C.TensorBase.data


class PretendTensor(Tensor):
    """A tensor on the device: `raw` has its values on the CPU, or only its shape, on meta."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, raw: Tensor) -> "PretendTensor":
        self = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=device(),
        )
        self.raw = raw
        ledger.hold(raw)
        return self

    def __init__(self, raw: Tensor) -> None:
        super().__init__()

    @property
    def data(self) -> Tensor:
        data: Tensor = _data.__get__(self)
        return data

    @data.setter
    def data(self, value: Tensor) -> None:
        # Of a parameter that becomes a view into a vendor's buffer: values and shape have to follow together.
        assert isinstance(value, PretendTensor), f"{value.device} in place of {self.device}"
        _data.__set__(self, value)
        self.raw = value.raw

    def tolist(self) -> Any:
        ledger.wait("tolist")
        return (self.raw if _computes else torch.ones(self.shape, dtype=self.dtype)).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def record_stream(self, stream: Any) -> None:
        """A storage is the CPU's: nothing reuses it while work is under way."""

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _perform(func, args, kwargs or {})


class PretendGpu(TorchDispatchMode):
    """The device is there for as long as the context lasts."""

    def __init__(self, *, compute: bool = True) -> None:
        super().__init__()
        self._settings = compute

    def __enter__(self) -> "PretendGpu":
        global _computes
        device()
        _computes = self._settings
        self._pin, Tensor.pin_memory = Tensor.pin_memory, _pin  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Tensor.pin_memory = self._pin  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Also what no tensor of the device takes part in comes by here: collectives are looked at."""
        if func.namespace == "c10d":
            _note_collective(func, args)
        return _perform(func, args, kwargs or {})


def computes() -> bool:
    """Whether tensors on the device have values."""
    return _computes


def _perform(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation."""
    given = [*tensors_in(args), *tensors_in(kwargs.values())]
    here = [tensor for tensor in given if isinstance(tensor, PretendTensor)]
    named = kwargs.get("device")
    lands_here = bool(here) if named is None else torch.device(named).type == NAME
    if func.namespace == "c10d" and (here or any(isinstance(tensor, HollowTensor) for tensor in given)):
        return _collective(func, args, kwargs, given)
    if not here and not lands_here:
        return func(*args, **kwargs) if _computes else hollow.perform(func, args, kwargs, given)
    ledger.operations += 1
    if func is aten._local_scalar_dense.default:
        ledger.wait("item")
        return here[0].raw.item() if _computes else (1.0 if here[0].is_floating_point() else 1)
    moves = list(_moves(func, args, kwargs, lands_here))
    if moves:
        lands_here = moves[0][1]
        if not _computes and any(isinstance(source, PretendTensor) != to_device for source, to_device in moves):
            return _without_values(func, args, kwargs, lands_here)
    elif here:
        _check_one_device(func, given)
        if _asks_for_size(func, args):
            ledger.wait(func.overloadpacket.__name__)
    if lands_here and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{func}: expected a generator of {NAME}, found one of the CPU")
    on_meta = named is not None and torch.device(named).type == "meta"
    if named is not None and not on_meta:
        kwargs = {**kwargs, "device": torch.device("cpu" if _computes else "meta")}
    result = _on_cpu(func, args, kwargs)
    if lands_here:
        return _wrapped(result, here)
    return result if _computes or on_meta or named is None else hollow.on_host(result)


def _on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    args, kwargs = raw_arguments(args, kwargs, _raw)
    return func(*args, **kwargs)


def _raw(tensor: Tensor) -> Tensor:
    return tensor.raw if isinstance(tensor, PretendTensor) else tensor


def _wrapped(result: Any, here: list[PretendTensor]) -> Any:
    """Results of the CPU as tensors on the device; what an operation changed in place is the tensor that it was."""
    return _wrap(result, {id(tensor.raw): tensor for tensor in here})


def _wrap(item: Any, known: dict[int, PretendTensor]) -> Any:
    """Not a closure that calls itself: such a cycle of references would keep the tensors alive."""
    if type(item) in (list, tuple):
        return type(item)([_wrap(each, known) for each in item])
    if not isinstance(item, Tensor) or isinstance(item, PretendTensor):
        return item
    tensor = known.get(id(item))
    if tensor is None:
        return PretendTensor(item)
    if (tensor.shape, tensor.stride()) != (item.shape, item.stride()):  # turned or resized in place
        tensor.data = PretendTensor(item)
    return tensor


def _moves(func: Any, args: Any, kwargs: dict[str, Any], lands_here: bool) -> Iterator[tuple[Tensor, bool]]:
    """The copies of an operation between the host and the device."""
    pairs: Iterable[tuple[Tensor | None, Tensor]] = ()
    later = kwargs.get("non_blocking", False)
    if func is aten._to_copy.default:
        pairs = [(None, args[0])]
    elif func is aten.copy_.default:
        pairs, later = [(args[0], args[1])], (*args, later)[2]
    elif func is aten._foreach_copy_.default:
        pairs, later = zip(args[0], args[1], strict=True), (*args, later)[2]
    for target, source in pairs:
        from_device, to_device = isinstance(source, PretendTensor), isinstance(target, PretendTensor)
        if target is None:
            to_device = lands_here
        if from_device and not to_device:
            # torch makes pinned memory for what it is asked to copy later.
            ledger.cross("copy to host", waits=not (later and (target is None or _is_pinned(target))))
        elif to_device and not from_device:
            ledger.cross("copy from host", waits=not (later and _is_pinned(source)))
        yield source, to_device


def _is_pinned(tensor: Tensor) -> bool:
    return _storage(tensor)._cdata in pinned


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return (tensor.raw if isinstance(tensor, HollowTensor) else tensor).untyped_storage()


def _without_values(func: Any, args: Any, kwargs: dict[str, Any], lands_here: bool) -> Any:
    """A copy between the devices where nothing is computed: shapes alone."""
    if func is aten._to_copy.default:
        raw = torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="meta")
        return PretendTensor(raw) if lands_here else hollow.on_host(raw)
    return args[0] if func is aten.copy_.default else None


def _check_one_device(func: Any, given: list[Tensor]) -> None:
    for tensor in given:
        if not isinstance(tensor, PretendTensor) and tensor.dim():  # a number of the host's goes with the call
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, found {NAME}:0 and {tensor.device}"
            )


def _asks_for_size(func: Any, args: Any) -> bool:
    name = func.overloadpacket.__name__
    if name in SIZED:
        return True
    indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
    masks = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
    # A mask is looked through for its size, but where all that it names is set to one value.
    return masks and not (name.startswith("index_put") and args[2].numel() == 1)


def _collective(func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
    """A collective: gloo is handed what the CPU has."""
    if not _computes:
        work = torch._C._distributed_c10d.FakeWork().boxed()
        return work if len(func._schema.returns) == 1 else (args[0], work)
    return _wrapped(_on_cpu(func, args, kwargs), [tensor for tensor in given if isinstance(tensor, PretendTensor)])


def _note_collective(func: Any, args: Any) -> None:
    """Write a collective down. NCCL takes tensors of GPUs alone, and gloo beside it is there for those of the host."""
    groups = [item for item in args if isinstance(item, torch.ScriptObject) and "ProcessGroup" in str(item._type())]
    for group in map(torch.distributed.ProcessGroup.unbox, groups):
        of_host = group.group_name in host_groups
        for tensor in tensors_in(args):
            if of_host == isinstance(tensor, PretendTensor):
                raise RuntimeError(f"{func}: a group of the {'host' if of_host else 'device'}, and {tensor.device}")
        size = max((sum(tensor.nbytes for tensor in tensors_in([arg])) for arg in args), default=0)
        ledger.collectives.append(Collective(func.overloadpacket.__name__, group.group_name, group.size(), size))


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    """As torch does it where it sees a GPU: a copy of the same strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
    storage = _storage(copy)
    pinned.add(storage._cdata)
    weakref.finalize(storage, pinned.discard, storage._cdata).atexit = False
    return copy

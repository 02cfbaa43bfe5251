"""Tensors on the host that have no values, where nothing is computed: a model of any size fits.

Tensors smaller than LARGE are real, because programs read them. What comes from the device or has no values reads as 0.
"""

from typing import Any

import torch
from torch import Tensor

from pretrain.pretend.arguments import raw_arguments
from pretrain.pretend.ledger import ledger

LARGE = 2**20
"""Bytes."""
_MAKERS = "arange empty full ones rand randn zeros"
MADE = {
    name
    for maker in _MAKERS.split()
    for name in (maker, f"{maker}_like", f"new_{maker}", f"{maker}_strided", f"new_{maker}_strided")
}
"""Operations that make a tensor of any size from small arguments."""
_data: Any = torch._C.TensorBase.data


class HollowTensor(Tensor):
    """A tensor on the host: `raw` has only its shape, on meta."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, raw: Tensor) -> "HollowTensor":
        self = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device("cpu"),
        )
        self.raw = raw
        ledger.hold(raw, on_host=True)
        return self

    def __init__(self, raw: Tensor) -> None:
        super().__init__()

    @property
    def data(self) -> Tensor:
        data: Tensor = _data.__get__(self)
        return data

    @data.setter
    def data(self, value: Tensor) -> None:
        value = value if isinstance(value, HollowTensor) else HollowTensor(_shape_of(value))
        _data.__set__(self, value)
        self.raw = value.raw

    def tolist(self) -> Any:
        return torch.zeros(self.shape, dtype=self.dtype).tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"HollowTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _on_meta(func, args, kwargs or {})


def perform(func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
    """An operation of the host alone."""
    if any(isinstance(tensor, HollowTensor) for tensor in given):
        return _on_meta(func, args, kwargs)
    if func.overloadpacket.__name__ in MADE and _makes_large(func, args, kwargs):
        return _on_meta(func, args, {**kwargs, "device": torch.device("meta")})
    return func(*args, **kwargs)


def on_host(raw: Tensor) -> Tensor:
    """A tensor on the host of the shape of `raw`, which is on meta: with zeros if it is small."""
    return HollowTensor(raw) if raw.nbytes >= LARGE else torch.zeros(raw.shape, dtype=raw.dtype)


def _makes_large(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    place = kwargs.get("device")
    if place is not None and torch.device(place).type != "cpu":
        return False
    shaped, named = raw_arguments(args, {**kwargs, "device": torch.device("meta")}, _shape_of)
    return bool(func(*shaped, **named).nbytes >= LARGE)


def _on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.aten._local_scalar_dense.default:
        return 0.0 if args[0].is_floating_point() else 0
    known: dict[int, Tensor] = {}

    def raw(tensor: Tensor) -> Tensor:
        shape = tensor.raw if isinstance(tensor, HollowTensor) else _shape_of(tensor)
        known[id(shape)] = tensor
        return shape

    shaped, named = raw_arguments(args, kwargs, raw)
    if named.get("device") is not None:
        named["device"] = torch.device("meta")
    named.pop("pin_memory", None)
    return _wrap(func(*shaped, **named), known)


def _wrap(item: Any, known: dict[int, Tensor]) -> Any:
    if type(item) in (list, tuple):
        return type(item)([_wrap(each, known) for each in item])
    if not isinstance(item, Tensor):
        return item
    return known[id(item)] if id(item) in known else HollowTensor(item)


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

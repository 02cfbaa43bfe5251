"""The tensors among the arguments of an operation, also those in lists."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def raw_arguments(
    args: Iterable[Any], kwargs: dict[str, Any], raw: Callable[[Tensor], Tensor]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with each tensor replaced by `raw` of it."""
    return [_replaced(value, raw) for value in args], {name: _replaced(value, raw) for name, value in kwargs.items()}


def _replaced(value: Any, raw: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return raw(value)
    return type(value)([_replaced(each, raw) for each in value]) if type(value) in (list, tuple) else value

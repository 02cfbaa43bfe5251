"""Importing Megatron without its advice, and on a CPU without what only a GPU needs."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def megatron_imports() -> Iterator[None]:
    """Around the first imports of megatron.core (0.16.1).

    It warns half a dozen times that GPU packages are missing, which nobody here asked for. Where torch sees no GPU,
    `torch.compile`, a decorator of Megatron's fused functions, is the identity meanwhile: half of the import time.
    """
    real = torch.compile
    if not torch.cuda.is_available():
        torch.compile = _identity_decorator  # type: ignore[assignment]
    logging.getLogger("megatron").setLevel(logging.WARNING)
    try:
        # Recorded, not filtered: modules imported on the way put filters of their own in front.
        with warnings.catch_warnings(record=True):
            yield
    finally:
        torch.compile = real


def _identity_decorator(function: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    return (lambda inner: inner) if function is None else function

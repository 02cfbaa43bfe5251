"""Imports of the vendors without their warnings, and on a CPU without the parts that only a GPU needs."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from data_pipeline.imports import without


@contextlib.contextmanager
def megatron_imports() -> Iterator[None]:
    """Around the first imports of megatron.core (0.16.1), which warns half a dozen times that optional GPU packages are
    missing.

    wandb is hidden in the context: Megatron's inference engine imports it if it can, which takes every rank 0.4 s of
    processor time, while only the main rank uses wandb.
    """
    logging.getLogger("megatron").setLevel(logging.WARNING)
    # Recorded, not filtered: modules imported on the way put filters of their own in front.
    with without_compiler(), without("wandb"), warnings.catch_warnings(record=True):
        yield


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Make `torch.compile` the identity within the context if torch sees no GPU: as a decorator in Megatron
    and DeepSpeed it loads the whole compiler, which takes longer than the rest of their imports.
    """
    real = torch.compile
    if not torch.cuda.is_available():
        torch.compile = _identity_decorator  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real


def _identity_decorator(function: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    return (lambda inner: inner) if function is None else function

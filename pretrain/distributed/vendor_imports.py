"""Importing the vendors without their advice, and on a CPU without what only a GPU needs."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from data_pipeline.imports import without


@contextlib.contextmanager
def megatron_imports() -> Iterator[None]:
    """Around the first imports of megatron.core (0.16.1), which warns half a dozen times that GPU packages are missing,
    which nobody here asked for.

    wandb is hidden meanwhile: Megatron's inference engine asks for it (and does without it), which takes every rank
    0.4 s of processor time, while only the main one ever speaks to wandb.
    """
    logging.getLogger("megatron").setLevel(logging.WARNING)
    # Recorded, not filtered: modules imported on the way put filters of their own in front.
    with without_compiler(), without("wandb"), warnings.catch_warnings(record=True):
        yield


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Where torch sees no GPU, `torch.compile` is the identity meanwhile: as a decorator of functions in Megatron and
    DeepSpeed it loads the whole compiler, which takes longer than all the rest of them.
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

"""The meaning of an exception: whether it started in this rank, its kind of failure, and its description.

The only text that is matched here is that of PyTorch, gloo, NCCL, CUDA and the kernel.
"""

import re
from enum import Enum

from data_pipeline.errors import SystemRefused, UserError, error_line
from pretrain.config.errors import RunInUse, TrainingDiverged
from pretrain.outcome.failure import FailureKind
from pretrain.std_streams import is_refusal


class ErrorOrigin(Enum):
    """Which rank an exception is about."""

    THIS_RANK = "this rank"
    PEER_GONE = "peer gone"
    """Another rank closed its connection."""
    PEER_LATE = "peer late"
    """Another rank did not join a collective in time."""


def origin_of(error: BaseException) -> ErrorOrigin:
    """Whether `error` started in this rank or reports another one. The errors that led to it count too."""
    for link in _chain(error):
        text = str(link)
        if type(link).__name__ in _TORCH_ERRORS or (isinstance(link, RuntimeError) and _TRANSPORT.search(text)):
            return ErrorOrigin.PEER_LATE if _TIMEOUT.search(text) else ErrorOrigin.PEER_GONE
    return ErrorOrigin.THIS_RANK


def kind_of(error: BaseException) -> FailureKind:
    """The kind of failure that `error` is."""
    if isinstance(error, SystemRefused) or (isinstance(error, Exception) and is_refusal(error)):
        return FailureKind.SYSTEM_REFUSED
    if isinstance(error, RunInUse):
        return FailureKind.RUN_IN_USE
    if isinstance(error, UserError):
        return FailureKind.USER_ERROR
    if isinstance(error, TrainingDiverged):
        return FailureKind.DIVERGED
    if is_out_of_memory(error):
        return FailureKind.OUT_OF_MEMORY
    return FailureKind.DEVICE_ERROR if _DEVICE.search(describe_error(error)) else FailureKind.EXCEPTION


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host or device memory ran out."""
    return isinstance(error, MemoryError) or any(
        type(link).__name__ == "OutOfMemoryError" or (isinstance(link, RuntimeError) and _NO_MEMORY.search(str(link)))
        for link in _chain(error)
    )


def describe_error(error: BaseException) -> str:
    """Type and message in one line. If memory ran out, the line begins with that and names the keys that help."""
    text = f"{type(error).__name__}: {error_line(error)}"
    text = text if len(text) <= MAX_LINE else text[:MAX_LINE] + " ..."
    return f"out of memory: {text}; {MEMORY_REMEDY}" if is_out_of_memory(error) else text


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it was raised from, or while handling."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


MEMORY_REMEDY = (
    "lower train.micro_batch_size, set engine.recompute.granularity to selective or full, or raise engine.zero_stage"
)
MAX_LINE = 600

# torch 2.13, torch/csrc/distributed/c10d/exception.h: the classes that a broken process group raises.
_TORCH_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
# gloo and NCCL name themselves or their source files in the message of a RuntimeError.
_TRANSPORT = re.compile(r"gloo|nccl", re.IGNORECASE)
# gloo: "Timed out waiting 6000ms for recv operation"; torch's store: "timeout" and "timed out".
_TIMEOUT = re.compile(r"time[d ]?-? ?out", re.IGNORECASE)
# torch's CPU allocator: "can't allocate memory" and "not enough memory"; torch's CUDA allocator: "out of memory".
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
# torch: "CUDA error: ..." with the driver's "uncorrectable ECC error"; the kernel's name of SIGBUS is "Bus error".
_DEVICE = re.compile(r"CUDA error|uncorrectable|NCCL|Bus error")

"""Which of torch's kernels for attention can serve which model on which device; what is said holds for torch 2.13.

The rules for GPUs are those that torch itself applies when it is called; what it would take or refuse by the chip's
generation is left to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pretrain.config.engine import EngineConfig
from pretrain.config.errors import Problem
from pretrain.config.model import ModelConfig

Kernel = Literal["flash", "cudnn", "efficient", "math"]
KERNELS: tuple[Kernel, ...] = ("flash", "cudnn", "efficient", "math")


@dataclass(frozen=True)
class Calls:
    """What is asked of attention."""

    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    head_width: int
    dropout: float
    documents: bool
    """Whether there is a call for each document, of any length, one token included."""
    grouped: bool
    """Whether several query heads share a key and a value."""


def attention_kernels(choice: Literal["auto"] | Kernel, calls: Calls) -> tuple[Kernel, ...]:
    """The kernels that may serve, best known first; none where the one that is named cannot. math always can."""
    able = tuple(kernel for kernel in KERNELS if obstacle(kernel, calls) is None)
    return able if choice == "auto" else tuple(kernel for kernel in able if kernel == choice)


def obstacle(kernel: Kernel, calls: Calls) -> str | None:
    """Why this kernel cannot serve these calls, None: it can."""
    on_gpu, width, bits = calls.device == "cuda", calls.head_width, 32 if calls.precision == "fp32" else 16
    aligned = 128 // bits
    match kernel:
        case "flash" | "cudnn" if on_gpu and bits != 16:
            return "takes 16 bits only on a GPU; set engine.precision=bf16"
        case "flash" if on_gpu and width > 256:
            return f"takes heads of at most 256 columns, the model's have {width}"
        case "flash" if not on_gpu and calls.dropout > 0:
            return "has no dropout on a CPU; set model.attention_dropout=0"
        case "cudnn" | "efficient" if not on_gpu:
            return "needs a GPU"
        case "cudnn" if width > 128 or width % 8:
            return f"takes heads of at most 128 columns, a multiple of 8; the model's have {width}"
        case "cudnn" if calls.documents:
            return (
                "takes no documents of one token, and prepares itself anew for each length; data.document_mask is set"
            )
        case "efficient" if width % aligned:
            return f"takes heads of a multiple of {aligned} columns, the model's have {width}"
        case "efficient" if calls.grouped:
            return "takes no grouped queries; model.num_query_groups is less than model.num_heads"
    return None


def calls_of(model: ModelConfig, engine: EngineConfig, device: Literal["cpu", "cuda"], *, documents: bool) -> Calls:
    return Calls(
        device=device,
        precision=engine.precision,
        head_width=model.head_size,
        dropout=model.attention_dropout,
        documents=documents,
        grouped=model.kv_heads < model.num_heads,
    )


def attention_problems(engine: EngineConfig, calls: Calls) -> Iterator[Problem]:
    """A kernel that is named and cannot serve."""
    if engine.attention != "auto" and (reason := obstacle(engine.attention, calls)) is not None:
        yield Problem("engine.attention", engine.attention, reason, f"or choose {_either(calls)}")


def _either(calls: Calls) -> str:
    return " or ".join(f"engine.attention={kernel}" for kernel in ("auto", *attention_kernels("auto", calls)))

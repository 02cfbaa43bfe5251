"""Which of torch's attention kernels support which model on which device, in torch 2.13.

The rules for GPUs are those that torch itself checks at each call. Rules about GPU generations are left to torch.
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
class AttentionRequest:
    """The properties of attention that decide which kernels support it."""

    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    head_width: int
    dropout: float
    documents: bool
    """Whether each document is one call. Documents have any length from one token on."""
    grouped: bool
    """Whether several query heads share one key and value head."""
    window: bool = False
    """Whether a layer has a window, whose edge is a mask of numbers."""


def attention_kernels(choice: Literal["auto"] | Kernel, request: AttentionRequest) -> tuple[Kernel, ...]:
    """The kernels that may be used, preferred ones first. Empty if the chosen kernel does not support the request."""
    able = tuple(kernel for kernel in KERNELS if unsupported_reason(kernel, request) is None)
    return able if choice == "auto" else tuple(kernel for kernel in able if kernel == choice)


def unsupported_reason(kernel: Kernel, request: AttentionRequest) -> str | None:
    """Why the kernel does not support the request; None if it does."""
    on_gpu, width, bits = request.device == "cuda", request.head_width, 32 if request.precision == "fp32" else 16
    aligned = 128 // bits
    match kernel:
        case "flash" | "cudnn" if on_gpu and bits != 16:
            return "takes 16 bits only on a GPU; set engine.precision=bf16"
        case "flash" | "cudnn" if on_gpu and request.window:
            return "is not called with windows here; model.window is set"
        case "flash" if on_gpu and width > 256:
            return f"takes heads of at most 256 columns, the model's have {width}"
        case "flash" if not on_gpu and request.dropout > 0:
            return "has no dropout on a CPU; set model.attention_dropout=0"
        case "cudnn" | "efficient" if not on_gpu:
            return "needs a GPU"
        case "cudnn" if width > 128 or width % 8:
            return f"takes heads of at most 128 columns, a multiple of 8; the model's have {width}"
        case "cudnn" if request.documents:
            return "rejects documents of one token, and compiles a plan for each length; data.document_mask is set"
        case "efficient" if width % aligned:
            return f"takes heads of a multiple of {aligned} columns, the model's have {width}"
        case "efficient" if request.grouped:
            return "takes no grouped queries; model.num_query_groups is less than model.num_heads"
    return None


def attention_request(
    model: ModelConfig, engine: EngineConfig, device: Literal["cpu", "cuda"], *, documents: bool
) -> AttentionRequest:
    return AttentionRequest(
        device=device,
        precision=engine.precision,
        head_width=model.head_size,
        dropout=model.attention_dropout,
        documents=documents,
        window=model.window is not None,
        grouped=model.kv_heads < model.num_heads,
    )


def attention_problems(engine: EngineConfig, request: AttentionRequest) -> Iterator[Problem]:
    """The problem of a chosen kernel that does not support the request."""
    if engine.attention != "auto" and (reason := unsupported_reason(engine.attention, request)) is not None:
        rule, _, remedy = reason.partition("; ")
        choice = f"choose {_either(request)}"
        yield Problem("engine.attention", engine.attention, rule, f"{remedy}, or {choice}" if remedy else choice)


def _either(request: AttentionRequest) -> str:
    return " or ".join(f"engine.attention={kernel}" for kernel in ("auto", *attention_kernels("auto", request)))

"""How the optimizer step is carried out: ZeRO stage, precision, device."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LossScaleConfig:
    """Dynamic loss scaling; used by precision=fp16 only."""

    initial: float
    """First scale."""
    window: int
    """Steps without overflow after which the scale doubles."""
    minimum: float
    """The scale is never lowered below this."""
    hysteresis: int
    """The overflow of this number lowers the scale, as does each later one until the scale has doubled again; at ZeRO
    stage 0 the first one does."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed's part, in our words; its own configuration is derived from this."""

    zero_stage: Literal[0, 1, 2, 3]
    """What is split over data-parallel ranks: 0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Arithmetic of forward and backward; master weights and optimizer states are fp32 always."""
    loss_scale: LossScaleConfig
    device: Literal["auto", "cpu", "cuda"]
    """auto: a GPU if torch sees one."""
    cpu_threads: int | None
    """Threads of each CPU process; null: the machine's cores shared among its processes."""
    timeout_minutes: float
    """A collective that takes longer ends the run."""

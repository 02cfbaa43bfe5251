"""AdamW and the learning rate over time."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019) with clipping by the global norm."""

    lr: float
    """Peak learning rate."""
    beta1: float
    """Decay of the average of gradients, at least 0 and less than 1."""
    beta2: float
    """Decay of the average of squared gradients, at least 0 and less than 1."""
    eps: float
    """Added to the root of the second average, against division by 0."""
    weight_decay: float
    """Decoupled; not applied to norms, biases and position embeddings."""
    clip_grad_norm: float
    """Largest global gradient norm; 0 switches clipping off."""
    fused: bool = True
    """The update in one pass over the states; false: torch's plain one, an operation after the other on all of them,
    which another is held against and which holds an fp32 tensor more of what it updates."""


@dataclass(frozen=True, kw_only=True)
class LrScheduleConfig:
    """Learning rate as a pure function of steps and tokens done."""

    name: Literal["cosine", "linear", "constant", "wsd"]
    """Shape after warmup; wsd: warmup, stable, decay."""
    warmup_steps: int | None
    """Linear warmup in steps. Both null: a twentieth of the run."""
    warmup_tokens: int | None
    """Linear warmup in tokens."""
    final_ratio: float
    """Learning rate at the end of training, as a share of the peak."""
    decay_fraction: float
    """wsd only: share of the training length over which the rate decays at the end."""

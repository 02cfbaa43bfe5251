"""The optimizer and the learning rate over time."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon (Jordan et al. 2024): the update of a matrix is its momentum with all singular values near 1."""

    lr_ratio: float = 1.0
    """Learning rate of the matrices of the layers, over optim.lr. An update of Muon is scaled to the size of one of
    AdamW (Liu et al. 2025, "Muon is scalable for LLM training"), so 1 is a good start."""
    momentum: float = 0.95
    """Decay rate of the average of gradients. The update looks ahead (Nesterov)."""
    iterations: int = 5
    """Number of Newton-Schulz iterations."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of these iterations. bf16 is faster on a GPU; layouts then agree only within its rounding."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019) or Muon, with gradients clipped by their global norm."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases."""
    lr: float
    """Peak learning rate."""
    beta1: float
    """Decay rate of the average of gradients."""
    beta2: float
    """Decay rate of the average of squared gradients."""
    eps: float
    """Small number added to the denominator of the update, which prevents division by zero."""
    weight_decay: float
    """Decoupled weight decay. It is not applied to norms, biases and position embeddings."""
    embedding_lr_ratio: float = 1.0
    """Learning rate of the token embedding, over lr. With tied embeddings it is that of the head too."""
    muon: MuonConfig = MuonConfig()
    """Settings of Muon."""
    clip_grad_norm: float
    """Largest global gradient norm. Larger gradients are scaled down. 0: no clipping."""
    base_width: int | None = None
    """Width (hidden size) of the model for which lr, weight_decay, eps and model.init_std were found. Those of the
    model's tensors follow from it by muP; null: they are the same at every width."""
    base_depth: int | None = None
    """Number of layers of that model: the rules of CompleteP. null: the same at every depth."""
    fused: bool
    """Whether the update is one pass over the states. false: PyTorch's update with one operation at a time, which is
    the reference for the fused one and needs one more fp32 tensor."""


@dataclass(frozen=True, kw_only=True)
class LrScheduleConfig:
    """Learning rate schedule, by steps and tokens done."""

    name: Literal["cosine", "linear", "constant", "wsd"]
    """Shape of the schedule after warmup. wsd: warmup, stable, decay."""
    warmup_steps: int | None
    """Length of linear warmup in steps. If this and warmup_tokens are null, it is a twentieth of the run."""
    warmup_tokens: int | None
    """Length of linear warmup in tokens."""
    final_ratio: float
    """Learning rate at the end of training, as a fraction of the peak."""
    decay_fraction: float
    """Fraction of the run over which the rate decays at its end. Only used with name=wsd."""

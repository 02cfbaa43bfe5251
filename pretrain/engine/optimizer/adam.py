"""The state that torch's AdamW, or Muon, keeps for each master weight."""

from typing import Any

import torch
from torch import Tensor

from pretrain.optim.muon import MuonAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The AdamW that we made. DeepSpeed wraps it, except at ZeRO-0 in fp32."""
    wrapped: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return wrapped


def adam_state(adamw: torch.optim.Optimizer, master: Tensor, moments: tuple[str, ...]) -> dict[str, Tensor]:
    """The master weight and these moments of it, or Muon's momentum.

    Creates the moments before the first step, as the optimizer does.
    """
    if moments and isinstance(adamw, MuonAdamW) and id(master) in adamw.muon_masters:
        return {"weight": master, "momentum": adamw.momentum_of(master)}
    state = adamw.state[master] if moments else {}
    if moments and not state:
        # A fused AdamW keeps the step count on the parameter's device.
        device = master.device if adamw.defaults["fused"] else "cpu"
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(master, memory_format=torch.preserve_format)
    return {"weight": master, **{moment: state[moment] for moment in moments}}


def adam_steps(adamw: torch.optim.Optimizer) -> float:
    """Number of updates so far. Adam's bias correction depends on it."""
    return max((float(state["step"]) for state in adamw.state.values() if "step" in state), default=0.0)


def set_adam_steps(adamw: torch.optim.Optimizer, steps: float) -> None:
    for state in adamw.state.values():
        if "step" in state:
            state["step"].fill_(steps)

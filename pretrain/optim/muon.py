"""Muon for matrices and AdamW for the rest, over the flat buffers in which ZeRO keeps master weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Orthogonalise = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
"""From master buffers and as many updates of their shapes: the updates, orthogonalised matrix by matrix."""


class MuonAdamW(torch.optim.AdamW):
    """torch's AdamW, except for groups with `is_muon`.

    Their momentum is element by element, so that it stays where ZeRO keeps the master weights. Only the
    orthogonalisation needs whole matrices: the engine sets `orthogonalise`. A step before that, which DeepSpeed takes
    at its start, leaves these groups alone.
    """

    orthogonalise: Orthogonalise | None = None
    muon_masters: frozenset[int] = frozenset()
    """`id` of the masters of which this rank has elements that Muon updates. The engine sets it too."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **adam: Any) -> None:
        self.momentum = momentum
        super().__init__(groups, **adam)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is called
        """DeepSpeed puts the masters of one group, or of a part of one, into `param_groups` for each call."""
        assert closure is None
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["is_muon"]]
        super().step()
        self.param_groups = groups
        if self.orthogonalise is not None:
            self._step_of_muon([group for group in groups if group["is_muon"]], self.orthogonalise)

    def momentum_of(self, master: Tensor) -> Tensor:
        """The momentum, which is zero before the first step."""
        state = self.state[master]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(master)
        momentum: Tensor = state["momentum"]
        return momentum

    def _step_of_muon(self, groups: list[dict[str, Any]], orthogonalise: Orthogonalise) -> None:
        updated = [(group, master) for group in groups for master in group["params"] if master.grad is not None]
        if not updated:
            return
        updates = []
        for _, master in updated:
            momentum = self.momentum_of(master)
            momentum.lerp_(master.grad, 1 - self.momentum)
            updates.append(torch.lerp(master.grad, momentum, self.momentum))
        whole = orthogonalise([master for _, master in updated], updates)
        for (group, master), update in zip(updated, whole, strict=True):
            master.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

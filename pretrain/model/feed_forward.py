"""The feed-forward block of a layer. For the backward pass it keeps the inputs of its two matrices and its activation.

Shapes: s sequence, b batch, h hidden size, f width of the activation on this rank.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu


class FeedForward(MLP):
    """Megatron's parameters, with our activation between them."""

    activate: Callable[[Tensor, Tensor | None], Tensor]
    """(output of the first matrix, its bias) -> input of the second matrix [s, b, f]; compile.py may replace it."""

    def __init__(self, config: TransformerConfig, width: int | None = None) -> None:
        """`width`: the inner width; None: that of the configuration."""
        matrices = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        if width is not None:
            config = copy.copy(config)  # both matrices have the width of the configuration
            config.ffn_hidden_size = width
        super().__init__(config, matrices)
        self.activate = self._activate

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """hidden [s, b, h] -> [s, b, h], and the bias that the caller adds."""
        output, bias = self.linear_fc2(self.activate(*self.linear_fc1(hidden)))
        # If a recomputed function returns a parameter itself, the parameter becomes part of the function's graph, and
        # the backward pass never ends (megatron-core 0.16.1 with torch 2.13).
        return output, None if bias is None else bias.clone()

    def _activate(self, inner: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            inner = inner + bias
        return swiglu(inner) if self.config.gated_linear_unit else self.config.activation_func(inner)


def swiglu(inner: Tensor) -> Tensor:
    """inner [..., 2 f], of which the first half gates the second -> [..., f] (Shazeer 2020, equation 6).

    It keeps `inner` alone for the backward pass. If torch differentiates the formula, it keeps the gate's activation
    too, and megatron-core 0.16.1 adds a zero to the second half, of which torch keeps a copy.
    """
    output: Tensor = _SwiGLU.apply(inner)
    return output


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor) -> Tensor:
        ctx.save_for_backward(inner)
        gate, up = inner.chunk(2, -1)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (inner,), (of_output,) = ctx.saved_tensors, gradients
        gate, up = inner.chunk(2, -1)
        of_inner = torch.empty_like(inner)
        of_gate, of_up = of_inner.chunk(2, -1)
        torch.mul(of_output, silu(gate), out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_output * up, gate, grad_input=of_gate)
        return of_inner

"""ZeRO 0: each rank updates all of its stage, in as many calls whatever the number of parameters.

In 16 bits DeepSpeed keeps fp32 masters and the loss scale. Its own update is left aside: it asks the device about every
gradient, takes the norm of the weights, scales and copies tensor by tensor, and, when the loss scale has just grown,
divides by the new one what was multiplied by the old. The inner fields named here are those of deepspeed 0.19.8.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def masters_and_parameters(optimizer: Any) -> list[tuple[Tensor, nn.Parameter]]:
    """What Adam updates, with what forward uses: the parameter itself in fp32."""
    if not hasattr(optimizer, "fp32_groups"):
        return [(parameter, parameter) for group in optimizer.param_groups for parameter in group["params"]]
    masters, parameters = itertools.chain(*optimizer.fp32_groups), itertools.chain(*optimizer.fp16_groups)
    return list(zip(masters, parameters, strict=True))


@torch.no_grad()
def update(optimizer: Any, adam: Callable[[], Any], *, norm: float, clip: float, scale: float) -> None:
    """Clip to a global norm of `clip` and update, unless `norm`, which is the gradients' divided by `scale`, is none.

    `adam`: the step of the optimizer that has the masters.
    """
    in_16_bits = hasattr(optimizer, "fp32_groups")
    optimizer.overflow = not math.isfinite(norm)  # how the engine learns that nothing was updated
    if not optimizer.overflow:
        held = [pair for pair in masters_and_parameters(optimizer) if pair[1].grad is not None]
        gradients = [parameter.grad.float() for _, parameter in held]  # type: ignore[union-attr]
        factor = (clip / (norm + 1e-6) if 0 < clip < norm else 1.0) / scale
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        for (master, _), gradient in zip(held, gradients, strict=True):
            master.grad = gradient
        adam()
        if in_16_bits:
            for master, _ in held:
                master.grad = None
            copy_into_parameters(optimizer)
    if in_16_bits:
        optimizer._update_scale(optimizer.overflow)


@torch.no_grad()
def copy_into_parameters(optimizer: Any) -> None:
    """Round the masters to what forward uses."""
    masters, parameters = zip(*masters_and_parameters(optimizer), strict=True)
    torch._foreach_copy_(parameters, masters)

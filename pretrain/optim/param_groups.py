"""Choose the parameters that get weight decay."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def decay_groups(
    parameters: Iterable[tuple[str, torch.Size, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Two optimizer groups: matrices with weight decay; norms, biases and position embeddings without.

    Pass each parameter with its name and its original shape: ZeRO-3 leaves the parameter itself empty.
    Norm weights and biases are the vectors. Weight decay would pull norm weights to 0 rather than to 1 (Radford et al.
    2019 and Brown et al. 2020 exclude them).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, shape, parameter in parameters:
        is_matrix = len(shape) >= 2 and "position_embeddings" not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]

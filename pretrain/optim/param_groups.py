"""Which parameters are decayed."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def decay_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: matrices are decayed; norms, biases and position embeddings are not.

    Norm weights and biases are the vectors; decaying them pulls gains to 0 rather than to 1 (Radford et al. 2019 and
    Brown et al. 2020 leave them out).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        is_matrix = parameter.dim() >= 2 and "position_embeddings" not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]

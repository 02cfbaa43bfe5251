"""Divide the parameters into groups of one weight decay, learning rate and eps."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.model.scaling import Scaling

Named = Iterable[tuple[str, torch.Size, nn.Parameter]]
"""Parameters with their names in the whole model and their original shapes: ZeRO-3 leaves the parameters empty."""


def parameter_groups(parameters: Named, model: ModelConfig, optim: OptimConfig) -> list[dict[str, Any]]:
    """The optimizer groups: first matrices with weight decay; then norms, biases and position embeddings without.

    Norm weights and biases are the vectors. Weight decay would pull norm weights to 0 rather than to 1 (Radford et al.
    2019 and Brown et al. 2020 exclude them). `lr_scale`: the group's learning rate over the run's. Each kind is a
    single group, unless optim.base_width or base_depth give its tensors different factors.
    """
    scaling = Scaling.of(model, optim)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, shape, parameter in parameters:
        is_decayed = len(shape) >= 2 and "position_embeddings" not in name
        scale = scaling.of_tensor(name, len(shape))
        new = {
            "params": [],
            "weight_decay": optim.weight_decay * scale.weight_decay if is_decayed else 0.0,
            "eps": optim.eps * scale.eps,
            "lr_scale": scale.lr,
        }
        groups.setdefault((not is_decayed, scale.of_update), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]

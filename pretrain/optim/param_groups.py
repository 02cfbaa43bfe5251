"""Divide the parameters into groups of one optimizer, weight decay, learning rate and eps."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.optim.update import Update, update_of

Named = Iterable[tuple[str, torch.Size, nn.Parameter]]
"""Parameters with their names in the whole model and their original shapes: ZeRO-3 leaves the parameters empty."""


def parameter_groups(parameters: Named, model: ModelConfig, optim: OptimConfig) -> list[dict[str, Any]]:
    """The optimizer groups: first matrices with weight decay; then norms, biases and position embeddings without.

    Norm weights and biases are the vectors. Weight decay would pull norm weights to 0 rather than to 1 (Radford et al.
    2019 and Brown et al. 2020 exclude them). `lr_scale`: the group's learning rate over the run's. `is_muon`: whether
    Muon updates it.
    """
    groups: dict[Update, list[nn.Parameter]] = {}
    for name, shape, parameter in parameters:
        groups.setdefault(update_of(name, len(shape), model, optim), []).append(parameter)
    return [
        {
            "params": groups[update],
            "weight_decay": update.weight_decay,
            "eps": update.eps,
            "lr_scale": update.lr_scale,
            "is_muon": update.is_muon,
        }
        for update in sorted(groups, key=lambda update: not update.is_decayed)
    ]

"""The torch optimizer that DeepSpeed gets."""

from typing import Any

import torch

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.model.gpt import Stage
from pretrain.model.parameters import EXPERTS
from pretrain.optim.muon import MuonAdamW
from pretrain.optim.param_groups import parameter_groups


def new_optimizer(stage: Stage, model: ModelConfig, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon with it, over the parameters of a stage."""
    named = stage.named()
    tied = {parameter for parameter, local in stage.local.items() if local.tied}
    apart = {parameter for parameter in stage.local if hasattr(parameter, "group_name")}
    groups = [
        # ZeRO-1 and 2 divide each group into equal parts. A tied weight has a group of its own, so that both of its
        # stages divide it in the same way.
        group
        for alone in (False, True)
        for group in parameter_groups(
            [item for item in named if (item[2] in tied) == alone and item[2] not in apart], model, optim
        )
    ]
    # So have experts that other ranks hold than the rest, by DeepSpeed's names.
    groups += [
        {**group, "moe": True, "name": EXPERTS}
        for group in parameter_groups([item for item in named if item[2] in apart], model, optim)
    ]
    settings: dict[str, Any] = {
        "lr": 0.0,  # set at each step; DeepSpeed itself takes a step at start-up at ZeRO-0 in 16 bits
        "betas": (optim.beta1, optim.beta2),
        "fused": optim.fused,
        "foreach": not optim.fused,
    }
    if optim.name == "muon":
        return MuonAdamW(groups, momentum=optim.muon.momentum, **settings)
    return torch.optim.AdamW(groups, **settings)

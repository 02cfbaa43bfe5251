"""From a configuration to an engine."""

import torch

from pretrain.config.run import RunConfig
from pretrain.engine.interface import Engine
from pretrain.layout.groups import ProcessGroups
from pretrain.layout.vendor_imports import megatron_imports

with megatron_imports():
    from pretrain.engine.zero import ZeroEngine
    from pretrain.model.gpt import build_decoder


def build_engine(config: RunConfig, vocab_size: int, groups: ProcessGroups, device: torch.device) -> Engine:
    """The model on this rank's device, inside its engine; process groups must exist."""
    decoder = build_decoder(
        config.model, vocab_size=vocab_size, precision=config.engine.precision, seed=config.run.seed, device=device
    )
    return ZeroEngine(
        decoder,
        model=config.model,
        engine=config.engine,
        optim=config.optim,
        micro_batch_size=config.train.micro_batch_size,
        groups=groups,
        device=device,
    )

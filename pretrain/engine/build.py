"""From a configuration to an engine."""

import torch

from pretrain.config.run import RunConfig
from pretrain.engine.interface import Engine
from pretrain.layout.groups import DeepSpeedGroups, ProcessGroups
from pretrain.layout.vendor_imports import megatron_imports

with megatron_imports():
    from pretrain.engine.deepspeed_config import deepspeed_config
    from pretrain.engine.gathering import share_of
    from pretrain.engine.zero import ZeroEngine, import_deepspeed
    from pretrain.model.gpt import build_stage


def build_engine(config: RunConfig, vocab_size: int, groups: ProcessGroups, device: torch.device) -> Engine:
    """The model's part on this rank's device, inside its engine; process groups must exist."""
    reduce_per_step = config.engine.zero_stage >= 2 and config.engine.grad_reduction == "per_step"
    vendor_config = deepspeed_config(
        config.engine,
        reduce_per_step=reduce_per_step,
        micro_batch_size=config.train.micro_batch_size,
        clip_grad_norm=config.optim.clip_grad_norm,
        dp=groups.layout.dp,
    )
    import_deepspeed(device)
    stage = build_stage(
        config.model,
        parallel=config.parallel,
        engine=config.engine,
        vocab_size=vocab_size,
        seed=config.run.seed,
        groups=groups,
        device=device,
        keep_own_share=share_of(DeepSpeedGroups(groups), vendor_config) if config.engine.zero_stage == 3 else None,
    )
    return ZeroEngine(
        stage,
        model=config.model,
        engine=config.engine,
        optim=config.optim,
        deepspeed_config=vendor_config,
        hold_parameters=config.engine.zero_stage == 3 and config.engine.gather == "per_step",
        vocab_size=vocab_size,
        micro_batch_size=config.train.micro_batch_size,
        groups=groups,
        device=device,
    )

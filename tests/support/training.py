"""What tests do with an engine inside a rank; what they return is plain numpy, to be compared anywhere."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pretrain.config.run import RunConfig
from pretrain.engine.build import build_engine
from pretrain.engine.interface import Engine, StepResult
from pretrain.layout.grid import ParallelLayout
from pretrain.layout.groups import ProcessGroups, build_groups
from pretrain.layout.runtime import Runtime
from tests.support.models import VOCAB_SIZE, batch_of

LR = 1e-2


def join(here: Runtime, config: RunConfig) -> ProcessGroups:
    """All groups of pure data parallelism."""
    return build_groups(ParallelLayout(here.world_size), config.run.seed, config.engine.timeout_minutes, here.device)


def start(here: Runtime, config: RunConfig) -> Engine:
    """The engine of `config` on this rank."""
    return build_engine(config, VOCAB_SIZE, join(here, config), here.device)


def own_batch(here: Runtime, config: RunConfig, step: int) -> torch.Tensor:
    """This rank's samples of the global batch of `step`."""
    batch = batch_of(step, config.train.global_batch_size, config)
    return torch.from_numpy(batch[here.rank :: here.world_size])


def train(here: Runtime, config: RunConfig, engine: Engine, steps: Iterable[int]) -> list[StepResult]:
    """Optimizer steps on the batches of these numbers."""
    return [engine.train_step(own_batch(here, config, step), LR) for step in steps]


def gathered(parameter: torch.nn.Parameter) -> AbstractContextManager[Any]:
    """In its context the parameter is whole, also at ZeRO stage 3; called on all ranks."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext()


def whole_state(engine: Engine) -> dict[str, np.ndarray]:
    """Every logical tensor of the optimizer state, put together from the parts on all ranks."""
    parts = [(s.name, s.shape, s.start, s.data.detach().cpu().numpy().copy()) for s in engine.state_shards()]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, parts)
    state: dict[str, np.ndarray] = {}
    for name, shape, start, data in (part for rank in gathered for part in rank):
        flat = state.setdefault(name, np.full(shape, np.nan, data.dtype)).reshape(-1)
        flat[start : start + data.size] = data
    return state

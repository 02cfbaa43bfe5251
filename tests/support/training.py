"""Helpers for tests that run an engine inside a rank. They return numpy arrays, which the test process compares."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.groups import ProcessGroups, build_groups
from pretrain.distributed.runtime import Runtime
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.engine.build import build_engine
from pretrain.engine.interface import Engine, StepResult
from pretrain.model.scaling import Scaling
from tests.support.models import EOD_ID, VOCAB_SIZE, batch_of

with megatron_imports():
    from pretrain.model.gpt import Stage, build_stage

LR = 3e-3


def join(here: Runtime, config: RunConfig) -> ProcessGroups:
    """All groups of the configuration's layout."""
    layout = ParallelLayout.of(config.model, config.parallel, here.world_size)
    timeout = config.engine.timeout_minutes
    return build_groups(layout, config.run.seed, timeout, here.device, vp=config.parallel.vp)


def start(here: Runtime, config: RunConfig) -> Engine:
    """The engine of `config` on this rank."""
    return build_engine(config, VOCAB_SIZE, join(here, config), here.device, eod_id=EOD_ID)


def plain_stage(here: Runtime, config: RunConfig, vocab_size: int = VOCAB_SIZE) -> Stage:
    """This rank's part of the model without an engine around it."""
    return build_stage(
        config.model,
        parallel=config.parallel,
        engine=config.engine,
        vocab_size=vocab_size,
        seed=config.run.seed,
        groups=join(here, config),
        device=here.device,
        scaling=Scaling.of(config.model, config.optim),
    )


def own_batch(here: Runtime, config: RunConfig, step: int) -> torch.Tensor:
    """This rank's samples of the global batch of `step`."""
    batch = batch_of(step, config.train.global_batch_size, config)
    layout = ParallelLayout.of(config.model, config.parallel, here.world_size)
    _, dp_rank, _ = layout.coordinates(here.rank)
    return torch.from_numpy(batch[dp_rank // layout.cp :: layout.replicas])


def train(here: Runtime, config: RunConfig, engine: Engine, steps: Iterable[int]) -> list[StepResult]:
    """Optimizer steps on the batches of these numbers."""
    return [engine.train_step(own_batch(here, config, step), LR) for step in steps]


def gathered(parameter: torch.nn.Parameter) -> AbstractContextManager[Any]:
    """Context in which the parameter is whole, also at ZeRO-3. Call it on all ranks."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext()


def whole_state(engine: Engine) -> dict[str, np.ndarray]:
    """Every logical tensor of the optimizer state, assembled from the parts on all ranks."""
    parts = [
        (s.name, s.shape, s.origin, s.part_shape, s.start, s.data.detach().cpu().numpy().copy())
        for s in engine.state_shards()
    ]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, parts)
    state: dict[str, np.ndarray] = {}
    for name, shape, origin, part_shape, start, data in (part for rank in gathered for part in rank):
        whole = state.setdefault(name, np.full(shape, np.nan, data.dtype))
        part = whole[tuple(slice(first, first + size) for first, size in zip(origin, part_shape, strict=True))]
        held = np.unravel_index(np.arange(start, start + data.size), part_shape)
        before = part[held]
        # Copies on several ranks must be equal to the last bit.
        assert np.array_equal(before[~np.isnan(before)], data[~np.isnan(before)]), f"copies of {name} differ"
        part[held] = data
    return state

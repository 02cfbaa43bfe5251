"""Build an engine from a configuration."""

import logging
import os
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from pretrain.config.attention_kernels import attention_problems, attention_request
from pretrain.config.derived import micro_batch_size
from pretrain.config.errors import ConfigError
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import DeepSpeedGroups, ProcessGroups
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.engine.interface import Engine
from pretrain.model.scaling import Scaling
from pretrain.planner.choice import machine_of, modes_of
from pretrain.planner.memory import Modes, plan_memory
from pretrain.planner.shapes import all_stages
from pretrain.planner.states import partitions_in_memory

with megatron_imports():
    from pretrain.engine.deepspeed_config import deepspeed_config
    from pretrain.engine.nvme_offload import NvmeScratch, own_folder, require_async_io
    from pretrain.engine.optimizer.families import family_of
    from pretrain.engine.param_gather import zero3_partitioner
    from pretrain.engine.vendor_patches import import_deepspeed
    from pretrain.engine.zero import ZeroEngine
    from pretrain.model.compile import compile_stage
    from pretrain.model.gpt import build_stage

log = logging.getLogger(__name__)


def build_engine(
    config: RunConfig, vocab_size: int, groups: ProcessGroups, device: torch.device, *, eod_id: int
) -> Engine:
    """This rank's part of the model on its device, inside an engine. Process groups must exist.

    `eod_id`: the token that ends a document.
    """
    family = family_of(config.engine)
    shards_parameters = family.optimizer.partitions_parameters
    request = attention_request(
        config.model, config.engine, "cuda" if device.type == "cuda" else "cpu", documents=config.data.document_mask
    )
    if problems := list(attention_problems(config.engine, request)):
        raise ConfigError(problems)
    import_deepspeed(device)
    memory = smallest_memory(device, groups.control)
    modes = modes_of(config, vocab_size, groups.layout.world_size, memory, machine_of(config))
    if shards_parameters:
        log.info("ZeRO-3: gradients reduced %s, parameters gathered %s", modes.grad_reduction, modes.param_gather)
    vendor_config = deepspeed_config(
        config.engine,
        reduce_per_step=family.reduces_in_backward and modes.grad_reduction == "per_step",
        micro_batch_size=micro_batch_size(config.train),
        clip_grad_norm=config.optim.clip_grad_norm,
        dp=groups.layout.dp,
        scratch=_scratch(config, vocab_size, modes, groups),
    )
    stage = build_stage(
        config.model,
        parallel=config.parallel,
        engine=config.engine,
        vocab_size=vocab_size,
        seed=config.run.seed,
        groups=groups,
        device=device,
        attention=request,
        scaling=Scaling.of(config.model, config.optim),
        partition=zero3_partitioner(DeepSpeedGroups(groups), vendor_config) if shards_parameters else None,
    )
    if config.engine.compile != "none":
        compile_stage(stage, config.engine.compile, Path(config.run.dir) / "compile")
    return ZeroEngine(
        stage,
        model=config.model,
        engine=config.engine,
        optim=config.optim,
        deepspeed_config=vendor_config,
        gather_per_step=modes.param_gather == "per_step",
        vocab_size=vocab_size,
        micro_batch_size=micro_batch_size(config.train),
        eod_id=eod_id if config.data.document_mask else None,
        groups=groups,
        device=device,
    )


def _scratch(config: RunConfig, vocab_size: int, modes: Modes, groups: ProcessGroups) -> NvmeScratch | None:
    """This rank's folder on the disk, if anything is offloaded there."""
    offload = config.engine.offload
    if "nvme" not in (offload.optimizer, offload.params):
        return None
    assert offload.nvme_path is not None
    require_async_io()
    memory = plan_memory(config, vocab_size, groups.layout.world_size, modes)[groups.pp_rank]
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    folder = own_folder(offload.nvme_path, config.run.dir, dist.get_rank(), memory.disk, ranks_here)
    shapes = all_stages(config.model, config.parallel, vocab_size)[groups.pp_rank]
    return NvmeScratch(folder, *partitions_in_memory(config, shapes, groups.layout.dp))


def smallest_memory(device: torch.device, control: dist.ProcessGroup) -> int:
    """Bytes of memory that every rank has: its GPU's, or an equal share of its machine's."""
    if device.type == "cuda":
        own = torch.cuda.get_device_properties(device).total_memory
    else:
        own = psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    smallest = torch.tensor(own)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=control)
    return int(smallest)

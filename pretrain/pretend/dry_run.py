"""`pretrain plan --dry-run`: run every distinct stage of a layout without computing, and compare it with the plan."""

import os
import time
from dataclasses import dataclass, replace

from pretrain.config.attention_kernels import attention_problems, attention_request
from pretrain.config.checks import check_run
from pretrain.config.derived import micro_batches
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.planner.choice import machine_of, modes_of, sized
from pretrain.planner.costs import StageTraffic, step_traffic
from pretrain.planner.memory import Modes, StageMemory, plan_memory
from pretrain.planner.plan import vocabulary
from pretrain.planner.shapes import all_stages
from pretrain.pretend.measured import Measured, Step, extrapolated
from pretrain.pretend.processes import check_room, measure_each
from pretrain.pretend.stages import StageClass, distinct_stages, steps_to_take

GIB = 2**30
UNLIMITED = 1 << 50
"""Bytes of a device whose memory is unknown."""


@dataclass(frozen=True)
class StageRun:
    """One stage, measured and planned."""

    stages: StageClass
    rank: int
    measured: Measured
    step: Step
    """A whole step."""
    planned: StageMemory
    planned_traffic: StageTraffic
    planned_elements: int


@dataclass(frozen=True)
class DryRun:
    """The stages of a layout."""

    config: RunConfig
    """As it was run: everything that was `auto` is chosen."""
    vocab_size: int
    source: str
    """The source of the size of the vocabulary."""
    world_size: int
    modes: Modes
    stages: tuple[StageRun, ...]
    notes: tuple[str, ...]
    """Differences from the run that the configuration describes."""
    seconds_imports: float
    seconds: float


def dry_run(config: RunConfig, world_size: int, gpu_memory: float | None) -> DryRun:
    """Run one rank of each distinct stage. `gpu_memory`: GiB of a device, or None if unknown.

    Raises UserError if the layout is not legal, or this machine has too little memory.
    """
    begin = time.perf_counter()
    config, vocab_size, source, modes, notes = resolved(config, world_size, gpu_memory)
    check_room()
    # Read at the first import of torch and DeepSpeed: a GPU of this machine takes no part, and nothing looks for one.
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    from pretrain.pretend.one_rank import Asked

    seconds_imports = time.perf_counter() - start
    parallel = config.parallel
    layout = ParallelLayout.of(config.model, config.parallel, world_size)
    number = micro_batches(config.train, layout.replicas)
    assert number is not None
    shapes = all_stages(config.model, parallel, vocab_size)
    memory = plan_memory(config, vocab_size, world_size, modes, shapes)
    traffic = step_traffic(config, vocab_size, world_size, modes)
    classes = distinct_stages(shapes)
    device = UNLIMITED if gpu_memory is None else int(gpu_memory * GIB)
    asked = [
        Asked(
            config,
            vocab_size,
            world_size,
            layout.rank_at(0, 0, group.first),
            device,
            steps_to_take(parallel, number, group.first),
        )
        for group in classes
    ]
    found = measure_each(asked)
    runs = [
        StageRun(
            group,
            item.rank,
            measured,
            extrapolated(measured.steps[-2], measured.steps[-1], number),
            memory[group.first],
            traffic[group.first],
            shapes[group.first].num_parameters,
        )
        for group, item, measured in zip(classes, asked, found, strict=True)
    ]
    longest = max(item.steps[-1] for item in asked)
    if longest < number:
        notes = (
            *notes,
            f"at most {longest} of {number:,} micro-batches were run, enough for the schedule's steady state; counts, "
            "bytes received and waits are extrapolated to all of them",
        )
    return DryRun(
        config,
        vocab_size,
        source,
        world_size,
        modes,
        tuple(runs),
        notes,
        seconds_imports,
        time.perf_counter() - begin,
    )


def resolved(
    config: RunConfig, world_size: int, gpu_memory: float | None
) -> tuple[RunConfig, int, str, Modes, tuple[str, ...]]:
    """The configuration with everything chosen that the engine would choose on its device, and notes about it."""
    check_run(config, world_size)
    offload, notes = config.engine.offload, []
    for key in ("optimizer", "params"):
        if getattr(offload, key) == "nvme":
            rule = "a dry run writes no files"
            raise ConfigError([Problem(f"engine.offload.{key}", "nvme", rule, f"try engine.offload.{key}=cpu")])
    vocab_size, source = vocabulary(config)
    budget = None if gpu_memory is None else int(min(gpu_memory * GIB, UNLIMITED))
    if budget is not None:
        config = sized(config, vocab_size, world_size, budget, machine_of(config))
    elif config.train.micro_batch_size == "auto":
        rule = "is found for a device whose memory is known"
        raise ConfigError([Problem("train.micro_batch_size", "auto", rule, "give --gpu-memory")])
    request = attention_request(config.model, config.engine, "cuda", documents=config.data.document_mask)
    if problems := list(attention_problems(config.engine, request)):
        raise ConfigError(problems)
    modes = modes_of(config, vocab_size, world_size, budget, machine_of(config))
    if config.engine.compile != "none":
        notes.append("engine.compile is left out: memory and traffic are those of the eager model")
    if config.data.document_mask:
        notes.append("each sample is one document")
    engine = config.engine
    engine = replace(
        engine,
        device="auto",
        compile="none",
        grad_reduction=modes.grad_reduction if engine.zero_stage >= 2 else engine.grad_reduction,
        param_gather=modes.param_gather if engine.zero_stage >= 3 else engine.param_gather,
    )
    return replace(config, engine=engine), vocab_size, source, modes, tuple(notes)

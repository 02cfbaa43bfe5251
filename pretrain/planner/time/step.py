"""The time of one training step of a layout on a machine: compute, communication, pipeline and host.

The parts are those of one rank of the busiest pipeline stage. Nothing is measured here, and torch is not needed.
"""

import dataclasses
from collections.abc import Sequence

from pretrain.config.derived import micro_batches, sharding_size
from pretrain.config.parallel import Chunk
from pretrain.config.run import RunConfig
from pretrain.planner.memory import Modes
from pretrain.planner.shapes import StageShapes, all_stages
from pretrain.planner.time.behaviour import CONSTANTS, Behaviour, Constants, behaviour_of
from pretrain.planner.time.cpu_step import cpu_parts
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.layer import (
    Parts,
    PassTimes,
    Rank,
    embedding_times,
    head_times,
    layer_times,
    transfer_seconds,
)
from pretrain.planner.time.links import Links, data_group, tensor_group
from pretrain.planner.time.pipeline import Schedule, busy_seconds, seconds_of
from pretrain.planner.time.products import products_of
from pretrain.planner.time.result import StepTime, summary
from pretrain.planner.time.sharding import DataParallel


def predict_step(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    modes: Modes,
    hardware: Hardware,
    behaviour: Behaviour | None = None,
    constants: Constants = CONSTANTS,
    stages: Sequence[StageShapes] | None = None,
) -> StepTime:
    """The time of a step; the layout must be legal on `world_size` ranks, and the micro-batch size a number.

    `behaviour`: the program that runs it. None: this one. `stages`: those of the layout, if they are known.
    """
    if hardware.cpu is not None and behaviour is None:
        parts = cpu_parts(config, vocab_size, world_size, modes, hardware)
        return summary(config, vocab_size, world_size, hardware, parts, constants)
    behaviour = behaviour or behaviour_of(config.engine, hardware.kind, constants)
    rank = _rank(config, vocab_size, world_size, hardware, behaviour, constants)
    dp = sharding_size(config.parallel, world_size)
    assert dp is not None
    number = micro_batches(config.train, dp // config.parallel.cp) or 1
    stages = stages or all_stages(config.model, config.parallel, vocab_size)
    sharding = DataParallel(rank, modes, data_group(config.parallel.tp, dp, devices_per_node(config, hardware)), number)
    passes = _passes(rank, stages, sharding)
    schedule = Schedule(
        [[forward.seconds for forward, _ in chunks] for chunks in passes],
        [[backward.seconds for _, backward in chunks] for chunks in passes],
        transfer_seconds(rank, world_size),
        number,
    )
    in_passes = seconds_of(schedule)
    busy = busy_seconds(schedule)
    busiest = busy.index(max(busy))
    work = _sum([part for chunk in passes[busiest] for part in chunk]).times(number)
    first = min(sum(forward.seconds for forward, _ in chunks) for chunks in passes)
    last = min(sum(backward.seconds for _, backward in chunks) for chunks in passes)
    parts = {
        "matrix products": work.products,
        "attention": work.attention,
        "elementwise": work.elementwise,
        "tensor parallel": work.tensor_parallel,
        **({"context parallel": work.context_parallel} if config.parallel.cp > 1 else {}),
        **({"expert parallel": work.expert_parallel} if work.expert_parallel else {}),
        "pipeline": max(0.0, in_passes - work.seconds),
        "data parallel": work.data_parallel + max(sharding.once(stage, first, last) for stage in stages),
        "optimizer": max(sharding.optimizer_seconds(stage) for stage in stages),
        "host": work.host + hardware.host_step_us.value * 1e-6,
    }
    if config.model.tie_embeddings and config.parallel.pp > 1:
        parts["pipeline"] += sharding.tied_seconds(stages[0], world_size)
    return summary(config, vocab_size, world_size, hardware, parts, constants)


def devices_per_node(config: RunConfig, hardware: Hardware) -> int:
    """GPUs of a node, as the cluster's configuration or else the machine's record says."""
    return config.cluster.gpus_per_node or round(hardware.devices_per_node.value)


def _rank(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    hardware: Hardware,
    behaviour: Behaviour,
    constants: Constants,
) -> Rank:
    in_node = devices_per_node(config, hardware)
    share = 1.0 if hardware.kind == "gpu" else 1.0 / min(world_size, in_node)
    return Rank(
        config=config,
        vocab_size=vocab_size,
        hardware=hardware,
        behaviour=behaviour,
        constants=constants,
        products=products_of(hardware, config.engine.precision, share),
        links=Links(hardware, in_node, behaviour.nics_per_ring, share),
        tensor=tensor_group(config.parallel.tp, in_node),
        context=data_group(config.parallel.tp, config.parallel.cp, in_node),
        experts=tensor_group(config.parallel.ep * config.parallel.etp, in_node),
        share=share,
    )


def _passes(rank: Rank, stages: Sequence[StageShapes], sharding: DataParallel) -> list[list[tuple[Parts, Parts]]]:
    """By stage and chunk: the parts of a forward pass and of a backward pass of one micro-batch."""
    layer, head, embedding = layer_times(rank), head_times(rank), embedding_times(rank)
    made: dict[tuple[int, bool, bool], tuple[Parts, Parts]] = {}
    for chunk in (chunk for stage in stages for chunk in stage.chunks):
        key = _contents(chunk)
        if key not in made:
            made[key] = _chunk(rank, chunk, layer, head, embedding, sharding)
    return [[made[_contents(chunk)] for chunk in stage.chunks] for stage in stages]


def _contents(chunk: Chunk) -> tuple[int, bool, bool]:
    """Return all that the time of a chunk depends on."""
    return chunk.num_layers, chunk.embedding, chunk.head


def _chunk(
    rank: Rank, chunk: Chunk, layer: PassTimes, head: PassTimes, embedding: PassTimes, sharding: DataParallel
) -> tuple[Parts, Parts]:
    ends = [times for times, here in ((embedding, chunk.embedding), (head, chunk.head)) if here]
    forward = _sum([layer.forward.times(chunk.num_layers), *(times.forward for times in ends)])
    recompute = rank.config.engine.recompute
    again = 0
    if recompute.granularity == "full":
        again = chunk.num_layers if recompute.method == "uniform" else min(recompute.num_layers, chunk.num_layers)
    backward = _sum(
        [layer.backward.times(chunk.num_layers), layer.recompute.times(again), *(times.backward for times in ends)]
    )
    host = rank.behaviour.host_micro_batch_us * 1e-6
    forward = dataclasses.replace(forward, host=forward.host + host)
    return sharding.forward(chunk, forward), sharding.backward(chunk, backward, again)


def _sum(parts: Sequence[Parts]) -> Parts:
    total = Parts()
    for part in parts:
        total = total + part
    return total

"""The pipeline bubble of a layout, and the bytes that its modes send, by arithmetic."""

from dataclasses import dataclass

from pretrain.config.derived import micro_batches, sharding_size
from pretrain.config.engine import EngineConfig
from pretrain.config.run import RunConfig
from pretrain.planner.memory import Modes
from pretrain.planner.shapes import all_stages
from pretrain.planner.states import gradient_bytes, parameter_bytes


@dataclass(frozen=True)
class StageTraffic:
    """Bytes that each rank of a pipeline stage receives from its data-parallel peers in one optimizer step."""

    gather: int
    """Parameters."""
    reduction: int
    """Gradients."""


def bubble_share(pp: int, vp: int, micro_batches: int) -> float:
    """Share of a step in which a stage waits: (pp - 1) / (vp m + pp - 1).

    Narayanan et al. 2021, section 2.2, give the waiting against the work, (pp - 1) / (vp m); this is it against both.
    It holds for stages of equal work.
    """
    return (pp - 1) / (vp * micro_batches + pp - 1)


def step_traffic(config: RunConfig, vocab_size: int, world_size: int, modes: Modes) -> list[StageTraffic]:
    """The traffic of each stage, with the ring algorithms' (d - 1) / d of a tensor for a gather or a reduce-scatter.

    In tensors of the whole stage, m micro-batches in a step:

        engine.zero_stage   gather                                           reduction
        0                   -                                                2 (an all-reduce)
        1                   1 (the updated parameters)                       2 (deepspeed 0.19.8 all-reduces too)
        2                   1                                                2, per_micro_batch: 2 m
        3                   1, per_micro_batch: 2 m, with full recompute 3 m 1, per_micro_batch: m
    """
    engine = config.engine
    dp = sharding_size(config.parallel, world_size)
    assert dp is not None
    number = micro_batches(config.train, dp // config.parallel.cp) or 1
    traffic = []
    for shapes in all_stages(config.model, config.parallel, vocab_size):
        once = shapes.num_parameters * (dp - 1) / dp
        gathers = _gathers(engine, modes, number) * parameter_bytes(engine)
        reductions = _reductions(engine, modes, number) * gradient_bytes(engine)
        traffic.append(StageTraffic(round(once * gathers), round(once * reductions)))
    return traffic


def _gathers(engine: EngineConfig, modes: Modes, number: int) -> int:
    if engine.zero_stage < 3:
        return min(engine.zero_stage, 1)
    if modes.param_gather == "per_step":
        return 1
    return (3 if engine.recompute.granularity == "full" else 2) * number


def _reductions(engine: EngineConfig, modes: Modes, number: int) -> int:
    times = number if engine.zero_stage >= 2 and modes.grad_reduction == "per_micro_batch" else 1
    return times if engine.zero_stage == 3 else 2 * times  # only stage 3 reduces and scatters

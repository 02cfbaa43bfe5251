"""Settings that are `auto`: what fits in memory, and of that the fastest by the time model if the machine is known.

Every rank computes the choice by itself, from the configuration, the smallest memory of all ranks and the record that
cluster.hardware names. The arithmetic is the same on all of them, so all come to one choice.
"""

from collections.abc import Sequence

from pretrain.config.derived import data_parallel_size, with_micro_batch_size
from pretrain.config.numbers import divisors
from pretrain.config.run import RunConfig
from pretrain.planner.memory import HEADROOM, Modes, choose_modes, fullest_stage, mode_options
from pretrain.planner.micro_batch import with_micro_batch
from pretrain.planner.shapes import StageShapes, all_stages
from pretrain.planner.time.hardware import Hardware, load_hardware
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.step import predict_step

DIGITS = 9
"""Significant digits by which times are compared: the last bits of logarithms may differ between machines."""


def machine_of(config: RunConfig) -> Hardware | None:
    """The record that cluster.hardware names; raises ConfigError if it cannot be read."""
    return None if config.cluster.hardware is None else load_hardware(config.cluster.hardware)


def rounded_seconds(step: StepTime) -> float:
    """The time of a step by which layouts are compared."""
    return float(f"{step.seconds:.{DIGITS}g}")


def fitting_modes(
    config: RunConfig, vocab_size: int, world_size: int, budget_bytes: int | None, stages: Sequence[StageShapes]
) -> list[tuple[Modes, int]]:
    """The modes whose fullest stage fits in 0.9 of the budget, least traffic first, with the bytes of that stage."""
    limit = None if budget_bytes is None else HEADROOM * budget_bytes
    found = []
    for modes in mode_options(config.engine):
        peak = fullest_stage(config, vocab_size, world_size, modes, stages, limit)
        if peak is not None:
            found.append((modes, peak))
    return found


def modes_of(
    config: RunConfig, vocab_size: int, world_size: int, budget_bytes: int | None, hardware: Hardware | None
) -> Modes:
    """The modes for `auto`: the fastest that fit. Without a machine, or if none fits, those of `choose_modes`."""
    stages = all_stages(config.model, config.parallel, vocab_size)
    fitting = fitting_modes(config, vocab_size, world_size, budget_bytes, stages)
    if hardware is None or budget_bytes is None or not fitting:
        return choose_modes(config, vocab_size, world_size, budget_bytes)
    times = [rounded_seconds(predict_step(config, vocab_size, world_size, modes, hardware)) for modes, _ in fitting]
    return fitting[times.index(min(times))][0]


def sized(
    config: RunConfig, vocab_size: int, world_size: int, budget_bytes: int, hardware: Hardware | None
) -> RunConfig:
    """The configuration with a number for train.micro_batch_size=auto: of the sizes that fit the fastest.

    Without a machine, and if none fits, that of `with_micro_batch`, which raises ConfigError in the latter case.
    """
    if config.train.micro_batch_size != "auto" or hardware is None:
        return with_micro_batch(config, vocab_size, world_size, budget_bytes)
    best: tuple[float, RunConfig] | None = None
    stages = all_stages(config.model, config.parallel, vocab_size)
    for size in micro_batch_sizes(config, world_size):
        tried = with_micro_batch_size(config, size)
        fitting = fitting_modes(tried, vocab_size, world_size, budget_bytes, stages)
        if not fitting:
            continue  # a single micro-batch adds to no gradients: it may take less than several smaller ones
        for modes, _ in fitting:
            seconds = rounded_seconds(predict_step(tried, vocab_size, world_size, modes, hardware))
            if best is None or seconds < best[0]:
                best = seconds, tried
    return with_micro_batch(config, vocab_size, world_size, budget_bytes) if best is None else best[1]


def micro_batch_sizes(config: RunConfig, world_size: int) -> list[int]:
    """The legal numbers of samples at once, ascending; empty if the ranks cannot share the global batch."""
    dp, parallel = data_parallel_size(config.parallel, world_size), config.parallel
    if dp is None or config.train.global_batch_size % dp:
        return []
    samples = config.train.global_batch_size // dp
    turns = parallel.pp if parallel.vp > 1 else 1  # interleaved schedules take micro-batches in turns
    return [size for size in divisors(samples) if samples // size % turns == 0]

"""`train.micro_batch_size=auto`: as many samples at once as fit, and no more than the device gains by.

Found by the planner's arithmetic, before anything is built: all ranks come to the same number, and `pretrain plan`
shows it on a machine without the device.
"""

import math

from pretrain.config.derived import data_parallel_size, with_micro_batch_size
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.numbers import divisors
from pretrain.config.run import RunConfig
from pretrain.planner.memory import HEADROOM, choose_modes, plan_memory
from pretrain.planner.shapes import all_stages

ENOUGH_TOKENS = 16_384
"""In a forward pass: matrix products of so many rows fill today's devices (reasoned from rooflines, not measured)."""
FILLED_PIPELINE = 4
"""Micro-batches in a step for each stage: the bubble is (p - 1) / m of the work (Narayanan et al. 2021, 2.2)."""


def with_micro_batch(config: RunConfig, vocab_size: int, world_size: int, budget_bytes: int) -> RunConfig:
    """The configuration with a number for `auto`; legal on `world_size` ranks, as check_run says.

    The largest divisor of a rank's samples in a step whose fullest stage fits in 0.9 of the budget, with no more than
    ENOUGH_TOKENS tokens and, where it can be, FILLED_PIPELINE micro-batches for each pipeline stage. Raises ConfigError
    where not even one sample fits. All ranks must be given one budget.
    """
    if config.train.micro_batch_size != "auto":
        return config
    dp, parallel = data_parallel_size(config.parallel, world_size), config.parallel
    assert dp is not None
    samples = config.train.global_batch_size // dp
    turns = parallel.pp if parallel.vp > 1 else 1  # interleaved schedules take micro-batches in turns
    legal = [size for size in divisors(samples) if samples // size % turns == 0]
    enough = max(1, math.ceil(ENOUGH_TOKENS / config.model.seq_length))
    filled = [size for size in legal if parallel.pp == 1 or samples // size >= FILLED_PIPELINE * parallel.pp]
    stages = all_stages(config.model, parallel, vocab_size)
    for size in reversed([size for size in filled or legal[:1] if size <= enough]):
        sized = with_micro_batch_size(config, size)
        modes = choose_modes(sized, vocab_size, world_size, budget_bytes)
        peak = max(stage.peak for stage in plan_memory(sized, vocab_size, world_size, modes, stages))
        if peak <= HEADROOM * budget_bytes:
            return sized
    gib = 2**30
    rule = (
        f"one sample at once is planned to take {peak / gib:.1f} GiB on a rank, {HEADROOM:.0%} of "
        f"{budget_bytes / gib:.1f} GiB may be planned"
    )
    hint = (
        "raise engine.zero_stage, parallel.tp or parallel.pp, set engine.recompute.granularity=full or "
        "engine.offload.optimizer=cpu, or give a number to try it all the same"
    )
    raise ConfigError([Problem("train.micro_batch_size", "auto", rule, hint)])

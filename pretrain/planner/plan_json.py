"""The figures of `pretrain plan --json`."""

import dataclasses
from typing import Any

from pretrain.config.derived import data_parallel_size, micro_batches
from pretrain.planner.costs import step_traffic
from pretrain.planner.memory import HEADROOM
from pretrain.planner.plan import GIB, Plan
from pretrain.planner.plan_time import run_tokens
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.sensitivity import guesses_that_matter


def plan_as_json(made: Plan, price: float | None = None) -> dict[str, Any]:
    """All figures of a plan: bytes, seconds, and what the run costs."""
    config = made.config
    traffic = step_traffic(config, made.vocab_size, made.world_size, made.modes)
    peak = max(stage.peak for stage in made.memory)
    budget = None if made.gpu_memory is None else HEADROOM * made.gpu_memory * GIB
    return {
        "model": config.model.name,
        "ranks": made.world_size,
        "vocab_size": made.vocab_size,
        "layout": {
            **dataclasses.asdict(config.parallel),
            "dp": data_parallel_size(config.parallel, made.world_size),
            "zero_stage": config.engine.zero_stage,
            "precision": config.engine.precision,
        },
        "micro_batch_size": config.train.micro_batch_size,
        "micro_batches": micro_batches(config.train, data_parallel_size(config.parallel, made.world_size) or 1),
        "modes": dataclasses.asdict(made.modes),
        "memory": [{**dataclasses.asdict(stage), "peak": stage.peak} for stage in made.memory],
        "traffic": [dataclasses.asdict(stage) for stage in traffic],
        "fits": None if budget is None else peak <= budget,
        "time": None if made.step is None else made.step.as_json(run_tokens(config), price),
        "guesses": {} if made.hardware is None else _guesses(made, made.hardware),
    }


def _guesses(made: Plan, hardware: Hardware) -> dict[str, float]:
    """Relative change of a step by the name of each guessed number that is 10 % lower."""
    found = guesses_that_matter(made.config, made.vocab_size, made.world_size, made.modes, hardware)
    return {guess.name: guess.effect for guess in found}

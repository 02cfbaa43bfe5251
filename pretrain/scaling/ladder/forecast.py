"""The planned time of a cell: seconds of a step by the planner's model of the machine."""

import importlib
from dataclasses import dataclass
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.planner.memory import choose_modes
from pretrain.planner.plan import GIB


@dataclass(frozen=True)
class Forecast:
    """The planned time of one step."""

    seconds: float
    low: float
    high: float
    """Ends of the band that holds 80 % of measured steps."""


def forecast(config: RunConfig, vocab_size: int, ranks: int, hardware: Any) -> Forecast:
    """The planned step of a run on `ranks` ranks of this machine (planner.time.hardware.Hardware)."""
    step = importlib.import_module("pretrain.planner.time.step")
    memory = config.cluster.gpu_memory_gib
    modes = choose_modes(config, vocab_size, ranks, None if memory is None else int(memory * GIB))
    time = step.predict_step(config, vocab_size, ranks, modes, hardware)
    return Forecast(time.seconds, time.low, time.high)

"""The planned time of a cell: seconds of a step by the planner's model of the machine."""

from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.planner.choice import machine_of, modes_of
from pretrain.planner.plan import GIB
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.step import predict_step


@dataclass(frozen=True)
class Forecast:
    """The planned time of one step."""

    seconds: float
    low: float
    high: float
    """Ends of the band that holds 80 % of measured steps."""


def forecast(config: RunConfig, vocab_size: int, ranks: int, hardware: Hardware) -> Forecast:
    """The planned step of a run on `ranks` ranks of this machine."""
    memory = config.cluster.gpu_memory_gib
    budget = None if memory is None else int(memory * GIB)
    modes = modes_of(config, vocab_size, ranks, budget, machine_of(config))
    time = predict_step(config, vocab_size, ranks, modes, hardware)
    return Forecast(time.seconds, time.low, time.high)

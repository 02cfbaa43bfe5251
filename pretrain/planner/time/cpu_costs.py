"""Costs of a training step on a CPU beyond its products and attention; `pretrain bench --record` measures them.

On a CPU nothing overlaps: the time in Python adds to the time in kernels, and ranks share the cores. One rate for
elementwise work would be wrong by a factor of ten: arithmetic limits a GELU, memory bandwidth limits a sum.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16"]
Activation = Literal["gelu", "swiglu"]
CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]


@dataclass(frozen=True)
class LayerCost:
    """Elementwise work of a layer, forward and backward together, without products and attention."""

    activation: Activation
    precision: Precision
    host_us: float
    """Microseconds of a layer whose tensors are tiny."""
    hidden_ns: float
    """Nanoseconds for each token and hidden column: norms, residual sums, rotary positions, copies."""
    inner_ns: float
    """Nanoseconds for each token and column of the feed-forward block: activation and bias."""


@dataclass(frozen=True)
class LossCost:
    """Cross-entropy, forward and backward together."""

    cross_entropy: str
    precision: Precision
    logit_ns: dict[str, float]
    """Nanoseconds for each logit by the number of logits of a micro-batch: large tensors get fresh memory each time."""

    def at(self, logits: int) -> float:
        """Nanoseconds between the measured numbers, linear in their logarithm; beyond them those at the border."""
        known = sorted((math.log2(int(number)), value) for number, value in self.logit_ns.items())
        place = min(max(math.log2(logits), known[0][0]), known[-1][0])
        for (low, below), (high, above) in itertools.pairwise(known):
            if low <= place <= high:
                return below + (above - below) * (place - low) / (high - low)
        return known[0][1]


@dataclass(frozen=True)
class EngineCost:
    """The engine around the layers, by ZeRO stage, on one rank."""

    zero_stage: int
    precision: Precision
    step_us: float
    """Microseconds of a step, whatever the model."""
    step_layer_us: float
    """Microseconds that each layer adds to a step, however many its micro-batches."""
    micro_batch_us: float
    layer_us: float
    """Microseconds that each layer adds to each micro-batch, beyond `LayerCost.host_us`."""
    parameter_ns: float
    """Nanoseconds for each parameter in a step: gradients copied, norm, update, parameters copied."""


@dataclass(frozen=True)
class Collective:
    """Times of one collective among ranks of one machine, while the others of the machine wait."""

    kind: CollectiveKind
    ranks: int
    latency_us: float
    """Microseconds of a collective of a few bytes."""
    gbps: float
    """GB/s of a large one, counted in bytes of the whole tensor."""


@dataclass(frozen=True)
class CpuCosts:
    """The measured costs of one process with its threads, alone on the machine unless said."""

    source: str
    threads: int
    """Threads that a process computed with."""
    cores: int
    """Cores that the processes of the machine may use."""
    layers: tuple[LayerCost, ...]
    losses: tuple[LossCost, ...]
    engine: tuple[EngineCost, ...]
    update_ns: float
    """Nanoseconds of AdamW alone for each parameter that a rank updates."""
    table_ns: float
    """Nanoseconds for each element of an embedding table in each micro-batch: its gradient is a whole table."""
    crowding: dict[str, float]
    """Ranks that compute at the same time -> how many times longer each takes than alone."""
    collectives: tuple[Collective, ...] = ()

    def slowdown(self, ranks: int) -> float:
        """How many times longer a rank takes when so many compute at once; interpolated, beyond the cores in
        proportion."""
        known = sorted((int(number), factor) for number, factor in self.crowding.items())
        known = [(1, 1.0), *((number, factor) for number, factor in known if number > 1)]
        last, factor = known[-1]
        if ranks >= last:
            fair = max(1.0, last * self.threads / self.cores)
            return factor / fair * max(1.0, ranks * self.threads / self.cores)
        for (low, below), (high, above) in itertools.pairwise(known):
            if low <= ranks <= high:
                return below + (above - below) * (ranks - low) / (high - low)
        return 1.0

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Every number by its dotted name."""
        return _numbers("", dataclasses.asdict(self))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _numbers(f"{name}.{number}", item)
    elif isinstance(value, int | float):
        yield name, value

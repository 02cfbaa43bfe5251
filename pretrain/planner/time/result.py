"""The predicted time of a step, and what follows from it: speed, MFU, days and cost."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.config.derived import tokens_per_step
from pretrain.config.run import RunConfig
from pretrain.model.flops import token_flops
from pretrain.planner.time.behaviour import Constants
from pretrain.planner.time.hardware import Hardware, Origin

SPREAD, SPREAD_BY_HOST = 0.05, 0.07
"""Logarithm of measured over predicted step times of published runs: 80 % are within SPREAD if the device is busy, and
within the sum of both if it waits for the host."""
SPREAD_ON_CPU = 0.20
"""The same on a CPU: a guess, because other programs on the machine decide."""
HOST_BOUND_SHARE = 0.05
"""Share of a step in which the device waits for the host, from which the larger spread counts."""


@dataclass(frozen=True)
class StepTime:
    """The predicted time of one optimizer step."""

    seconds: float
    low: float
    """10 % of measured steps are expected to be shorter."""
    high: float
    """10 % of measured steps are expected to be longer."""
    parts: Mapping[str, float]
    """Seconds by part; they add up to `seconds`."""
    limit: str
    """One line: the part that takes most time."""
    ranks: int
    tokens: int
    """Tokens in a step, over all ranks."""
    mfu: Mapping[str, float]
    """Model FLOPs utilization by convention: 6n, 6n_6lhs, 6n_12lhs; of the machine's published peak."""
    hardware: str
    origins: Mapping[Origin, list[str]]
    """The numbers of the machine's record by origin."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_second_per_rank(self) -> float:
        return self.tokens_per_second / self.ranks

    def days(self, tokens: float) -> float:
        """Days of training for this many tokens, without validation, saving and restarts."""
        return tokens / self.tokens_per_second / 86400

    def device_hours(self, tokens: float) -> float:
        return self.days(tokens) * 24 * self.ranks

    def as_json(self, tokens: float | None = None, price: float | None = None) -> dict[str, Any]:
        """All figures; with the length of a run also days and hours, with a price of a GPU-hour the cost."""
        values: dict[str, Any] = {
            "seconds_step": self.seconds,
            "seconds_low": self.low,
            "seconds_high": self.high,
            "seconds_by_part": dict(self.parts),
            "limit": self.limit,
            "ranks": self.ranks,
            "tokens_step": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_per_rank": self.tokens_per_second_per_rank,
            **{f"mfu_{name}": share for name, share in self.mfu.items()},
            "hardware": self.hardware,
            "hardware_origins": {origin: list(names) for origin, names in self.origins.items()},
        }
        if tokens is not None:
            values |= {"tokens": tokens, "days": self.days(tokens), "device_hours": self.device_hours(tokens)}
            if price is not None:
                values |= {"price_per_device_hour": price, "cost": price * self.device_hours(tokens)}
        return values


def summary(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    hardware: Hardware,
    parts: Mapping[str, float],
    constants: Constants,
) -> StepTime:
    """The result from the seconds of its parts, lengthened by the slowest of many ranks."""
    alone = sum(parts.values())
    stretched = dict(parts)
    if world_size > 1 and hardware.kind == "gpu":
        stretched["stragglers"] = alone * constants.straggling * math.log2(world_size) / 10
    seconds, tokens = sum(stretched.values()), tokens_per_step(config)
    flops = dataclasses.asdict(token_flops(config.model, vocab_size))
    peak = hardware.peak_tflops.of(config.engine.precision) or hardware.peak_tflops.fp32.value
    # All ranks of a CPU's record share its cores.
    devices = world_size if hardware.kind == "gpu" else max(1.0, world_size / hardware.devices_per_node.value)
    spread = SPREAD + SPREAD_BY_HOST * min(1.0, parts["host"] / seconds / HOST_BOUND_SHARE)
    if hardware.kind == "cpu":
        spread = SPREAD_ON_CPU
    if hardware.cpu is not None:  # its rates are those of one process
        devices = min(world_size, max(1, hardware.cpu.cores // hardware.cpu.threads))
    rate = tokens / seconds / devices / (peak * 1e12)
    return StepTime(
        seconds=seconds,
        low=seconds * math.exp(-spread),
        high=seconds * math.exp(spread),
        parts=stretched,
        limit=_limit(stretched, seconds),
        ranks=world_size,
        tokens=tokens,
        mfu={name.replace("six_n", "6n"): value * rate for name, value in flops.items()},
        hardware=hardware.name,
        origins=hardware.origins(),
    )


def _limit(parts: Mapping[str, float], seconds: float) -> str:
    first, second = sorted(parts, key=lambda name: -parts[name])[:2]
    return f"{first} ({parts[first] / seconds:.0%} of a step), then {second} ({parts[second] / seconds:.0%})"

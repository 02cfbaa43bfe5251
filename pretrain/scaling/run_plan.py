"""From a predicted run to one that can be started: the nearest preset, a layout, and its planned time and cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pretrain.config.checks import check_run
from pretrain.config.derived import with_micro_batch_size
from pretrain.config.describe import CONF_DIR
from pretrain.config.load import load_run_config
from pretrain.config.model import ModelConfig
from pretrain.config.records import to_record
from pretrain.config.run import RunConfig
from pretrain.model.size import count_parameters
from pretrain.planner.choice import machine_of, modes_of, sized
from pretrain.planner.plan import GIB, vocabulary
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.step import predict_step
from pretrain.scaling.laws.hyperparameters import HyperparameterLaw
from pretrain.scaling.layouts import fastest_layout

FIRST_SPEED = 2e14
"""FLOP/s of a GPU from which the search for the compute of a budget starts."""


@dataclass(frozen=True)
class Preset:
    """A model of conf/model."""

    name: str
    parameters: int
    """Without embeddings."""


@dataclass(frozen=True)
class RunPlan:
    """The fastest layout of a preset on a given number of ranks."""

    config: RunConfig
    parameters: int
    """Without embeddings."""
    ranks: int
    step: StepTime
    tokens: float

    @property
    def flops_per_second(self) -> float:
        """6 N D per second and rank, with N without embeddings: the C that a GPU-second pays for."""
        return 6.0 * self.parameters * self.step.tokens_per_second_per_rank

    def facts(self, price: float | None) -> dict[str, Any]:
        """Values for JSON."""
        parallel = self.config.parallel
        hours = self.step.device_hours(self.tokens)
        return {
            "preset": self.config.model.name,
            "ranks": self.ranks,
            "tp": parallel.tp,
            "pp": parallel.pp,
            "micro_batch_size": self.config.train.micro_batch_size,
            "global_batch_size": self.config.train.global_batch_size,
            "seconds_step": self.step.seconds,
            "mfu": dict(self.step.mfu),
            "days": self.step.days(self.tokens),
            "gpu_hours": hours,
            "cost": None if price is None else hours * price,
        }


def presets(folder: Path = CONF_DIR / "model") -> list[Preset]:
    """All presets that a training can begin with, smallest first: scaled frequencies continue another one."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        model = to_record(_values(path), ModelConfig)
        if model.rope_scaling.kind == "none":
            count = count_parameters(model, vocab_size=1)
            found.append(Preset(path.stem, count.layers + count.final_norm))
    return sorted(found, key=lambda preset: preset.parameters)


def _values(path: Path) -> dict[str, Any]:
    """The keys of a model file, on top of those of the file that its defaults name. Hydra would take seconds."""
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for name in own.pop("defaults", ()):
        if name != "_self_":
            values |= _values(path.with_name(f"{name}.yaml"))
    return values | own


def nearest_preset(parameters: float) -> Preset:
    """The preset whose size differs least, as a ratio."""
    return min(presets(), key=lambda preset: abs(math.log(preset.parameters / parameters)))


def plan_run(
    preset: Preset,
    tokens: float,
    ranks: int,
    hardware: Hardware,
    law: HyperparameterLaw,
    overrides: Sequence[str] = (),
) -> RunPlan:
    """The fastest layout that fits; raises ConfigError if none does.

    The batch is that of the law, rounded to a multiple of the ranks, unless the overrides have one.
    """
    length = ("train.max_steps=null", f"train.max_tokens={int(tokens)}")
    config = load_run_config([f"model={preset.name}", "train.micro_batch_size=auto", *length, *overrides])
    if not any(word.startswith("train.global_batch_size=") for word in overrides):
        samples = law.batch_tokens(preset.parameters, tokens) / config.model.seq_length
        batch = max(1, round(samples / ranks)) * ranks
        config = replace(config, train=replace(config.train, global_batch_size=batch))
    vocab_size, _ = vocabulary(config)
    check_run(with_micro_batch_size(config, 1), ranks)
    budget = int((config.cluster.gpu_memory_gib or hardware.memory_gib.value) * GIB)
    if any(word.startswith(("parallel.", "parallel=")) for word in overrides):
        config = sized(config, vocab_size, ranks, budget, machine_of(config))
    else:
        config = fastest_layout(config, vocab_size, ranks, hardware)
    modes = modes_of(config, vocab_size, ranks, budget, machine_of(config))
    step = predict_step(config, vocab_size, ranks, modes, hardware)
    return RunPlan(config, preset.parameters, ranks, step, tokens)


@dataclass(frozen=True)
class Affordable:
    """The compute of a budget of GPU-hours, and the run that it was worked out with."""

    flops: float
    plan: RunPlan


def flops_for_hours(
    hours: float, best_run: Callable[[float], tuple[float, float]], plan: Callable[[Preset, float], RunPlan]
) -> Affordable:
    """The compute C = 6 N D that GPU-hours pay for, at the speed of the preset nearest to the best run of that C.

    `best_run`: N and D for a compute. The speed depends on the preset and the preset on the compute, so both are found
    in turns, from a guess.
    """
    flops, seen = hours * 3600 * FIRST_SPEED, dict[str, Affordable]()
    while True:
        size, tokens = best_run(flops)
        preset = nearest_preset(size)
        if preset.name in seen:
            return seen[preset.name]
        planned = plan(preset, tokens)
        flops = hours * 3600 * planned.flops_per_second
        seen[preset.name] = Affordable(flops, planned)

"""Measures training steps of tiny models in the product's own engine: the time of the host, and of elementwise work.

Times of models that differ in one size only are subtracted, so that what they have in common cancels.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from pretrain.bench.record.timer import Timer
from pretrain.config.derived import with_micro_batch_size
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.planner.time.cpu_costs import Activation, EngineCost, LayerCost, Precision

ZeroStage = Literal[0, 1, 2, 3]
VOCABULARY = 128
WARM_UP, STEPS = 2, 8
FEW_LAYERS, MANY_LAYERS = 1, 5
MANY_MICRO_BATCHES = 4
TINY_WIDTH, TINY_LENGTH = 16, 8


@dataclass(frozen=True)
class Probe:
    """One tiny model and its step."""

    activation: Activation
    precision: Precision
    zero_stage: ZeroStage = 0
    layers: int = FEW_LAYERS
    micro_batches: int = 1
    samples: int = 1
    """Samples in a micro-batch."""
    hidden: int = TINY_WIDTH
    inner: int = TINY_WIDTH
    heads: int = 1
    length: int = TINY_LENGTH

    @property
    def tokens(self) -> int:
        return self.samples * self.length


@dataclass(frozen=True)
class Times:
    """Seconds of one step."""

    whole: float
    passes: float
    """Forward and backward."""


class Steps:
    """Measures steps on one rank. `config`: what a probe does not say."""

    def __init__(self, config: RunConfig, groups: ProcessGroups, timer: Timer) -> None:
        self._config, self._groups, self._timer = config, groups, timer

    def times(self, probe: Probe) -> Times:
        """The least time of a few steps, after two that do not count."""
        with megatron_imports():
            from pretrain.engine.build import build_engine

        config = config_of(probe, self._config)
        logging.getLogger(build_engine.__module__).setLevel(logging.WARNING)  # its choices of modes say nothing here
        engine = build_engine(config, VOCABULARY, self._groups, self._timer.device, eod_id=0)
        tokens = torch.randint(1, VOCABULARY, (probe.micro_batches * probe.samples, probe.length + 1))
        whole, passes = [], []
        marks: list[float] = []
        for number in range(WARM_UP + STEPS):
            engine.before_next_update(lambda: marks.append(self._timer.now()))
            began = self._timer.now()
            engine.train_step(tokens, 1e-4)
            if number >= WARM_UP:
                whole.append(self._timer.now() - began)
                passes.append(marks[-1] - began)
        return Times(min(whole), min(passes))


def config_of(probe: Probe, config: RunConfig) -> RunConfig:
    """The configuration of a probe's run, on the device that `config` names."""
    model: ModelConfig = replace(
        config.model,
        name="probe",
        num_layers=probe.layers,
        hidden_size=probe.hidden,
        num_heads=probe.heads,
        num_query_groups=None,
        head_dim=None,
        ffn_hidden_size=probe.inner,
        seq_length=probe.length,
        tie_embeddings=False,
        **_FAMILY[probe.activation],
    )
    engine = replace(config.engine, zero_stage=probe.zero_stage, precision=probe.precision, **_PLAIN)
    samples = probe.micro_batches * probe.samples
    config = replace(config, model=model, engine=engine, train=replace(config.train, global_batch_size=samples))
    return with_micro_batch_size(config, probe.samples)


_FAMILY: dict[str, dict[str, Any]] = {
    "gelu": {"position": "learned", "norm": "layernorm", "activation": "gelu", "bias": True},
    "swiglu": {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False},
}
_PLAIN: dict[str, Any] = {"compile": "none", "attention": "auto", "cross_entropy": "plain", "grad_accum_dtype": "fp32"}


def engine_cost(
    steps: Steps, zero_stage: ZeroStage, precision: Precision, layer_host: float, update: float
) -> EngineCost:
    """The engine's own time at a ZeRO stage, from models of two depths with one and with several micro-batches.

    `layer_host`: seconds of a tiny layer in one micro-batch; `update`: seconds of the plain update for each parameter.
    """
    few, many = FEW_LAYERS, MANY_LAYERS
    base = Probe("gelu", precision, zero_stage)
    one = [steps.times(replace(base, layers=layers)).whole for layers in (few, many)]
    more = [steps.times(replace(base, layers=layers, micro_batches=MANY_MICRO_BATCHES)).whole for layers in (few, many)]
    # step + layers x step_layer + micro-batches x (micro_batch + layers x layer), with four of them known.
    both = [(later - first) / (MANY_MICRO_BATCHES - 1) for first, later in zip(one, more, strict=True)]
    layer = max((both[1] - both[0]) / (many - few), 0.0)
    micro_batch = max(both[0] - few * layer, 0.0)
    step_layer = max((one[1] - one[0]) / (many - few) - layer, 0.0)
    step = max(one[0] - few * step_layer - micro_batch - few * layer, 0.0)
    wide = [steps.times(replace(base, hidden=256, inner=inner, length=1)) for inner in (256, 4096)]
    plain = [steps.times(replace(base, zero_stage=0, hidden=256, inner=inner, length=1)) for inner in (256, 4096)]
    parameters = 2 * 256 * (4096 - 256) + 4096 - 256
    # Of the plain engine only the update counts: what its passes read is part of the products.
    passes = (wide[1].passes - wide[0].passes) - (plain[1].passes - plain[0].passes)
    updates = (wide[1].whole - wide[1].passes) - (wide[0].whole - wide[0].passes)
    parameter = max((passes + updates) / parameters - update, 0.0)
    return EngineCost(
        zero_stage=zero_stage,
        precision=precision,
        step_us=_us(step),
        step_layer_us=_us(step_layer),
        micro_batch_us=_us(micro_batch),
        layer_us=_us(max(layer - layer_host, 0.0)),
        parameter_ns=1e9 * parameter,
    )


def layer_host_seconds(steps: Steps, activation: Activation, precision: Precision) -> float:
    """Seconds of the forward and backward pass of a layer whose tensors are tiny."""
    probe = Probe(activation, precision, micro_batches=MANY_MICRO_BATCHES)
    few, many = (steps.times(replace(probe, layers=layers)).passes for layers in (FEW_LAYERS, MANY_LAYERS))
    return max((many - few) / (MANY_LAYERS - FEW_LAYERS) / MANY_MICRO_BATCHES, 0.0)


def wide_probes(activation: Activation, precision: Precision) -> tuple[Probe, Probe, Probe]:
    """Models wide enough that elementwise work shows: one, the same with more layers, and one with wider layers."""
    base = Probe(activation, precision, layers=1, samples=4, length=128, hidden=256, inner=256, heads=4)
    return base, replace(base, layers=3), replace(base, layers=3, inner=1024)


def layer_cost(
    probes: Sequence[Probe], passes: Sequence[float], explained: Sequence[float], layer_host: float
) -> LayerCost:
    """The elementwise work of a layer: its time without the time of its products and attention.

    `passes`: seconds forward and backward of the three probes; `explained`: those of one layer's products and attention
    in the second and third.
    """
    few, many, wide = probes
    extra = many.layers - few.layers
    rest = (passes[1] - passes[0]) / extra - explained[0] - layer_host
    wider = (passes[2] - passes[1]) / many.layers - (explained[1] - explained[0])
    inner = max(wider / (wide.tokens * (wide.inner - many.inner)), 0.0)
    hidden = max(rest / many.tokens - inner * many.inner, 0.0) / many.hidden
    return LayerCost(many.activation, many.precision, _us(layer_host), 1e9 * hidden, 1e9 * inner)


def _us(seconds: float) -> float:
    return 1e6 * seconds

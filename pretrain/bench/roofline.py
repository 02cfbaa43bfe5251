"""The parts of a step beside their times at the measured limits of the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.bench.parts import Part, PartTimes
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.model.flops import token_flops
from pretrain.model.size import count_parameters
from pretrain.planner.states import gradient_bytes, parameter_bytes

_PARTS: tuple[Part, ...] = (
    "matrix products",
    "attention",
    "elementwise and norms",
    "communication",
    "optimizer",
    "data",
    "idle",
)


@dataclass(frozen=True)
class Row:
    """One part of the median step, on the device of rank 0."""

    part: Part
    seconds: float
    ideal_seconds: float | None
    """The time at the measured limits; None if there is no simple limit."""


def ideal_seconds(
    config: RunConfig, vocab_size: int, layout: ParallelLayout, products: float, bandwidth: float
) -> dict[Part, float | None]:
    """The least time of a step on each device: operations by the rate of products, bytes by the bandwidth.

    As if the model were cut evenly over its ranks, without what recomputation adds; attention is causal and counted
    once.
    """
    model, engine, offloaded = config.model, config.engine, config.engine.offload.optimizer != "none"
    tokens = config.train.global_batch_size * model.seq_length / layout.world_size
    flops = token_flops(model, vocab_size)
    moved = elementwise_elements(model, vocab_size) * parameter_bytes(engine)
    parameters = count_parameters(model, vocab_size).total / (layout.tp * layout.pp)
    owned = parameters / layout.dp if engine.zero_stage else parameters
    # Masters and moments are read and written, gradients read for their norm and for the update, parameters written.
    update = 24 + 2 * gradient_bytes(engine) + (0 if engine.precision == "fp32" else parameter_bytes(engine))
    return {
        "matrix products": tokens * flops.six_n / products,
        "attention": tokens * (flops.six_n_6lhs - flops.six_n) / products,
        "elementwise and norms": tokens * moved / bandwidth,
        "communication": None,
        "optimizer": None if offloaded else owned * update / bandwidth,
        "data": 0.0,
        "idle": 0.0,
    }


def elementwise_elements(model: ModelConfig, vocab_size: int) -> float:
    """Elements read and written for a token, forward and backward, where each operation runs alone and its tensors go
    through the memory once: norms, residual sums, activation, rotary positions, cross-entropy; fused ones move less."""
    h, out = model.hidden_size, model.ffn_hidden_size
    into = 2 * out if model.activation == "swiglu" else out
    norms, sums = 2 * (2 * h + 3 * h), 2 * (3 * h + 3 * h)
    activation = (into + out) + (out + 2 * into)
    rotary = 4 * (model.num_heads + model.kv_heads) * model.head_size if model.position == "rope" else 0
    return model.num_layers * (norms + sums + activation + rotary) + 5 * h + 2 * vocab_size


def roofline(
    measured: PartTimes, step_seconds: float, data_seconds: float, ideal: Mapping[Part, float | None]
) -> list[Row]:
    """Parts that add up to the median step: the profiled parts, the wait for data, and the rest, which is idle.

    On a CPU profiling lengthens all, so the parts are taken in proportion to the profiled step; on a GPU kernels take
    as long as ever, and only where they fill more than the step are they cut to it. None where nothing was seen: that
    would all be idle.
    """
    if not measured.seconds:
        return []
    seconds, busy = dict(measured.seconds), sum(measured.seconds.values())
    scale = min(1.0, step_seconds / busy) if measured.on_gpu and busy else step_seconds / measured.step_seconds
    seconds = {part: value * scale for part, value in seconds.items()}
    free = max(0.0, step_seconds - sum(seconds.values()))
    waited = min(free, data_seconds)
    seconds["data"] = seconds.get("data", 0.0) + waited
    seconds["idle"] = free - waited
    return [Row(part, seconds.get(part, 0.0), ideal[part]) for part in _PARTS if part in seconds or ideal[part]]


def limit(rows: Sequence[Row]) -> str:
    """One line: the part that takes the most time, and the part furthest above its limit."""
    if not rows:
        return "not known"
    whole = sum(row.seconds for row in rows)
    most = max(rows, key=lambda row: row.seconds)
    known = [row for row in rows if row.ideal_seconds is not None]
    gap = max(known, key=_over)
    line = f"{most.part} take{'' if most.part.endswith('s') else 's'} most, {most.seconds / whole:.0%} of the step"
    if most.ideal_seconds:
        line += f", at {most.ideal_seconds / most.seconds:.0%} of the measured limit"
    if _over(gap) > 0:
        excess = f"{1000 * _over(gap):.1f} ms ({_over(gap) / whole:.0%}) above its limit"
        line += f"; the largest gain is in {gap.part}: {excess}"
    return line


def _over(row: Row) -> float:
    return row.seconds - (row.ideal_seconds or 0.0)

"""Everything that one rank alone on its machine can measure, one part after the other."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from pretrain.bench.record import passes
from pretrain.bench.record.attention import measure_attention
from pretrain.bench.record.engine import Steps, ZeroStage, engine_cost, layer_cost, layer_host_seconds, wide_probes
from pretrain.bench.record.products import measure_products
from pretrain.bench.record.progress import Show
from pretrain.bench.record.timer import Timer
from pretrain.planner.time.cpu_costs import Activation, CpuCosts, LayerCost, LossCost, Precision
from pretrain.planner.time.cpu_kernels import ATTENTION_KERNELS, CpuKernels
from pretrain.planner.time.hardware import AttentionCurve, Hardware, ProductTable, Quantity, Rates

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "swiglu")
LOSSES = ("plain", "in_place")
ZERO_STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)
OPTIMIZER_BYTES = 40.0
"""Bytes of an update for each parameter, by which `Hardware.optimizer_gbps` is counted."""
GIB = 2**30
PARTS_ON_GPU = 2 * len(DTYPES) + 2
PARTS_ON_CPU = 2 * len(DTYPES) + 1 + len(DTYPES) * (len(ACTIVATIONS) + len(ZERO_STAGES)) + 1


@dataclass(frozen=True)
class Bench:
    """The tools of a measurement."""

    timer: Timer
    steps: Steps
    source: str
    """Said as the origin of each value."""
    show: Show

    def quantity(self, value: float) -> Quantity:
        return Quantity(value, "measured", self.source)


def measure_alone(bench: Bench, base: Hardware) -> Hardware:
    """`base` with every value that this rank can measure in place of its own."""
    record = _with_rates(bench, base)
    return _on_cpu(bench, record) if bench.timer.on_cpu else _on_gpu(bench, record)


def _with_rates(bench: Bench, base: Hardware) -> Hardware:
    timer, tables, curves = bench.timer, [], list[AttentionCurve]()
    for precision, dtype in DTYPES.items():
        bench.show(f"matrix products, {precision}")
        tables.append(ProductTable(precision, "measured", bench.source, tuple(measure_products(dtype, timer))))
        bench.show(f"attention, {precision}")
        if timer.on_cpu or precision == "bf16":
            kernel = ATTENTION_KERNELS[precision] if timer.on_cpu else "fa2"  # torch's own flash kernel
            curves += measure_attention(dtype, kernel, timer, bench.source)
    bench.show("copies, sums, updates")
    best = {table.precision: bench.quantity(max(row.tflops for row in table.products)) for table in tables}
    rates = Rates(best["fp32"], best["bf16"], None if timer.on_cpu else base.product_tflops.fp16)
    return dataclasses.replace(
        base,
        products=tuple(tables),
        attention=tuple(curves),
        product_tflops=rates,
        peak_tflops=rates if timer.on_cpu else base.peak_tflops,
        memory_gib=bench.quantity(_memory_bytes(timer) / GIB),
        copy_gbps=bench.quantity(passes.copy_rate(timer)),
        elementwise_gbps=bench.quantity(passes.sum_rate(DTYPES["fp32" if timer.on_cpu else "bf16"], timer)),
        optimizer_gbps=bench.quantity(1e-9 * OPTIMIZER_BYTES / passes.update_seconds(timer)),
        launch_us=bench.quantity(1e6 * passes.launch_seconds(timer)),
    )


def _on_gpu(bench: Bench, record: Hardware) -> Hardware:
    bench.show("time of the host")
    # Layers so small that the host is always behind: their time is the host's, forward and backward.
    layer = layer_host_seconds(bench.steps, "swiglu", "bf16")
    engine = engine_cost(bench.steps, 1, "bf16", layer, 0.0)
    return dataclasses.replace(
        record,
        host_layer_us=bench.quantity(1e6 * layer / 2),
        host_step_us=bench.quantity(engine.step_us + engine.micro_batch_us),
    )


def _on_cpu(bench: Bench, record: Hardware) -> Hardware:
    layers, engine = [], []
    update = passes.update_seconds(bench.timer)
    for precision in DTYPES:
        for activation in ACTIVATIONS:
            bench.show(f"layers, {activation}, {precision}")
            layers.append(_layer(bench, record, activation, precision))
        host = layers[-len(ACTIVATIONS)].host_us * 1e-6
        for stage in ZERO_STAGES:
            bench.show(f"engine, ZeRO-{stage}, {precision}")
            engine.append(engine_cost(bench.steps, stage, precision, host, update))
    bench.show("losses and tables")
    losses = [_loss(bench, way, precision) for way in LOSSES for precision in DTYPES]
    costs = CpuCosts(
        source=bench.source,
        threads=bench.timer.threads,
        cores=len(psutil.Process().cpu_affinity() or [0]),
        layers=tuple(layers),
        losses=tuple(losses),
        engine=tuple(engine),
        update_ns=1e9 * update,
        table_ns=1e9 * passes.table_seconds(bench.timer),
        crowding={},
    )
    usual = next(cost for cost in engine if cost.zero_stage == 1)
    return dataclasses.replace(
        record,
        cpu=costs,
        sms=bench.quantity(costs.cores),
        sustained_share=bench.quantity(1.0),
        host_layer_us=bench.quantity(layers[0].host_us / 2),
        host_step_us=bench.quantity(usual.step_us + usual.micro_batch_us),
        host_gbps=record.copy_gbps,
    )


def _layer(bench: Bench, record: Hardware, activation: Activation, precision: Precision) -> LayerCost:
    host = layer_host_seconds(bench.steps, activation, precision)
    probes = wide_probes(activation, precision)
    kernels = CpuKernels(record, precision)
    explained = [
        kernels.layer(
            probe.samples,
            probe.length,
            hidden=probe.hidden,
            inner=probe.inner,
            heads=probe.heads,
            keys_values=probe.heads,
            width=probe.hidden // probe.heads,
            gated=activation == "swiglu",
        ).whole
        for probe in probes[1:]
    ]
    return layer_cost(probes, [bench.steps.times(probe).passes for probe in probes], explained, host)


def _loss(bench: Bench, way: str, precision: Precision) -> LossCost:
    by_logits = {
        str(tokens * passes.VOCABULARY): 1e9 * passes.loss_seconds(way, DTYPES[precision], tokens, bench.timer)
        for tokens in passes.TOKENS
    }
    return LossCost(way, precision, by_logits)


def _memory_bytes(timer: Timer) -> int:
    if timer.device.type == "cuda":
        return int(torch.cuda.get_device_properties(timer.device).total_memory)
    return int(psutil.virtual_memory().total)

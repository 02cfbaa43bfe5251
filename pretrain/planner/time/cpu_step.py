"""The time of one training step on a CPU, from the measured costs of its machine.

Everything adds: a CPU computes, sends and runs Python one after the other. Ranks share the cores, so a step takes the
longer of two times: that of the schedule, if each rank had a core of its own, and that of all work on the cores there
are.
"""

from dataclasses import dataclass

from pretrain.config.derived import micro_batch_size, micro_batches, padded_vocab_size, sharding_size
from pretrain.config.parallel import Chunk
from pretrain.config.run import RunConfig
from pretrain.planner.memory import Modes
from pretrain.planner.shapes import StageShapes, all_stages
from pretrain.planner.states import gradient_bytes, parameter_bytes
from pretrain.planner.time.cpu_costs import Collective, CollectiveKind, CpuCosts, EngineCost, LayerCost
from pretrain.planner.time.cpu_kernels import CpuKernels, KernelTimes
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.pipeline import Schedule, busy_seconds, seconds_of

FORWARD_SHARE = 0.35
"""Share of elementwise work and of the host's that a layer does forward; a guess, which only pipelines notice."""
WHOLE_SHARE = 0.6
"""Share of the work by hidden columns that tensor parallelism does not divide: norms and residual sums."""
SMALL_COLLECTIVES = 3
"""Collectives of a few numbers in each step: the norm of the gradient, the loss, the agreement of the ranks."""


@dataclass(frozen=True)
class Times:
    """Seconds of a pass, broken down by kind of work."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor_parallel: float = 0.0
    """Collectives of tensor- and context-parallel ranks."""
    host: float = 0.0

    @property
    def computed(self) -> float:
        return self.products + self.attention + self.elementwise + self.host

    @property
    def seconds(self) -> float:
        return self.computed + self.tensor_parallel

    def __add__(self, other: "Times") -> "Times":
        return Times(
            self.products + other.products,
            self.attention + other.attention,
            self.elementwise + other.elementwise,
            self.tensor_parallel + other.tensor_parallel,
            self.host + other.host,
        )

    def times(self, factor: float, sent: float = 1.0) -> "Times":
        """Multiply the computed parts by `factor`, and the sent part by `sent`."""
        return Times(
            self.products * factor,
            self.attention * factor,
            self.elementwise * factor,
            self.tensor_parallel * sent,
            self.host * factor,
        )


@dataclass(frozen=True)
class CpuRank:
    """One rank with everything that its time depends on."""

    config: RunConfig
    vocab_size: int
    world_size: int
    modes: Modes
    costs: CpuCosts
    kernels: CpuKernels

    @property
    def dp(self) -> int:
        return sharding_size(self.config.parallel, self.world_size) or 1

    @property
    def micro_batches(self) -> int:
        return micro_batches(self.config.train, self.dp // self.config.parallel.cp) or 1

    @property
    def samples(self) -> int:
        return micro_batch_size(self.config.train)

    @property
    def tokens(self) -> int:
        return self.samples * self.config.model.seq_length // self.config.parallel.cp

    @property
    def layer_cost(self) -> LayerCost:
        activation, precision = self.config.model.activation, self.config.engine.precision
        rows = [cost for cost in self.costs.layers if cost.activation == activation] or list(self.costs.layers)
        return next((cost for cost in rows if cost.precision == precision), rows[-1])

    @property
    def engine_cost(self) -> EngineCost:
        engine = self.config.engine
        rows = [cost for cost in self.costs.engine if cost.zero_stage == engine.zero_stage]
        return next((cost for cost in rows if cost.precision == engine.precision), rows[-1])

    def loss_seconds(self, logits: int) -> float:
        """Seconds of the cross-entropy of so many logits, forward and backward."""
        engine = self.config.engine
        rows = [cost for cost in self.costs.losses if cost.cross_entropy == engine.cross_entropy]
        rows = rows or list(self.costs.losses)
        cost = next((cost for cost in rows if cost.precision == engine.precision), rows[-1])
        return 1e-9 * cost.at(logits) * logits

    def collective(self, kind: CollectiveKind, num_bytes: float, ranks: int) -> float:
        """Seconds of a collective of a tensor of `num_bytes` when it is whole."""
        if ranks == 1 or not self.costs.collectives:
            return 0.0
        found = _nearest([each for each in self.costs.collectives if each.kind == kind], ranks)
        return 1e-6 * found.latency_us + num_bytes / (1e9 * found.gbps)


def cpu_parts(
    config: RunConfig, vocab_size: int, world_size: int, modes: Modes, hardware: Hardware
) -> dict[str, float]:
    """Seconds of a step by part; `hardware` has measured costs of its CPU."""
    assert hardware.cpu is not None
    kernels = CpuKernels(hardware, config.engine.precision)
    rank = CpuRank(config, vocab_size, world_size, modes, hardware.cpu, kernels)
    stages = all_stages(config.model, config.parallel, vocab_size)
    costs, number = rank.costs, rank.micro_batches
    passes = [[_chunk(rank, chunk) for chunk in stage.chunks] for stage in stages]
    at_once = min(world_size, max(1, costs.cores // costs.threads))
    schedule = _schedule(rank, passes, costs.slowdown(at_once))
    path = seconds_of(schedule)
    work = [sum((way for chunk in stage for way in chunk), Times()) for stage in passes]
    # All ranks' work on the cores there are: the mean over stages, each slowed down by all the others.
    crowded = number * sum(each.times(costs.slowdown(world_size)).seconds for each in work) / len(work)
    busiest = max(range(len(work)), key=lambda stage: busy_seconds(schedule)[stage])
    total = max(path, crowded)
    # What the busiest stage waits for, other stages or a core, is what its own work leaves of the whole.
    left = total / number - work[busiest].tensor_parallel
    slower = min(costs.slowdown(world_size), left / work[busiest].computed)
    shown = work[busiest].times(number * slower, number)
    after = max(_after_passes(rank, stage) for stage in stages)
    update = max(_update(rank, stage) for stage in stages) * costs.slowdown(world_size)
    return {
        "matrix products": shown.products,
        "attention": shown.attention,
        "elementwise": shown.elementwise,
        "tensor parallel": shown.tensor_parallel,
        "pipeline": max(0.0, total - shown.seconds),
        "data parallel": after,
        "optimizer": update,
        "host": shown.host + 1e-6 * rank.engine_cost.step_us * costs.slowdown(world_size),
    }


def _schedule(rank: CpuRank, passes: list[list[tuple[Times, Times]]], slower: float) -> Schedule:
    sent = float(parameter_bytes(rank.config.engine) * rank.tokens * rank.config.model.hidden_size)
    return Schedule(
        [[forward.times(slower).seconds for forward, _ in stage] for stage in passes],
        [[backward.times(slower).seconds for _, backward in stage] for stage in passes],
        rank.collective("send", sent, 2) if len(passes) > 1 else 0.0,
        rank.micro_batches,
    )


def _chunk(rank: CpuRank, chunk: Chunk) -> tuple[Times, Times]:
    """A chunk's forward and backward pass of one micro-batch."""
    forward, backward = _layer(rank)
    layers = chunk.num_layers
    engine, recompute = rank.config.engine, rank.config.engine.recompute
    again = 0
    if recompute.granularity == "full":
        again = layers if recompute.method == "uniform" else min(recompute.num_layers, layers)
    ahead, behind = forward.times(layers, layers), backward.times(layers, layers) + forward.times(again, again)
    host = 1e-6 * rank.engine_cost.micro_batch_us
    ahead += Times(host=FORWARD_SHARE * host)
    behind += Times(host=(1 - FORWARD_SHARE) * host)
    for ends, here in ((_embedding, chunk.embedding), (_head, chunk.head)):
        if here:
            more = ends(rank)
            ahead, behind = ahead + more[0], behind + more[1]
    if engine.zero_stage == 3 and rank.modes.param_gather == "per_micro_batch":
        gathered = _gathers(rank, layers)
        ahead, behind = ahead + Times(tensor_parallel=gathered), behind + Times(tensor_parallel=gathered)
    return ahead, behind


def _layer(rank: CpuRank) -> tuple[Times, Times]:
    model, parallel, cost = rank.config.model, rank.config.parallel, rank.layer_cost
    tp, cp = parallel.tp, parallel.cp
    kernels: KernelTimes = rank.kernels.layer(
        rank.samples,
        model.seq_length,
        hidden=model.hidden_size,
        inner=model.active_width // tp,
        heads=max(1, model.num_heads // tp),
        keys_values=max(1, model.kv_heads // tp),
        width=model.head_size,
        gated=model.activation == "swiglu",
    )
    hidden = model.hidden_size * (WHOLE_SHARE / (tp if parallel.sp else 1) + (1 - WHOLE_SHARE) / tp)
    moved = 1e-9 * rank.tokens * (cost.hidden_ns * hidden + cost.inner_ns * model.active_width / tp)
    host = 1e-6 * (cost.host_us + rank.engine_cost.layer_us)
    sent = parameter_bytes(rank.config.engine) * rank.tokens * model.hidden_size
    if parallel.sp:
        both = rank.collective("all_gather", sent, tp) + rank.collective("reduce_scatter", sent, tp)
        forward_sent, backward_sent = 2 * both, 2 * both + 2 * rank.collective("all_gather", sent, tp)
    else:
        forward_sent = backward_sent = 2 * rank.collective("all_reduce", sent, tp)
    keys_values = 2 * max(1, model.kv_heads // tp) * model.head_size
    shared = float(parameter_bytes(rank.config.engine) * rank.tokens * cp * keys_values)
    forward_sent += rank.collective("all_gather", shared, cp)
    backward_sent += rank.collective("reduce_scatter", shared, cp)
    return (
        Times(
            kernels.products_forward / cp,
            kernels.attention_forward * model.seen_share / cp,
            FORWARD_SHARE * moved,
            forward_sent,
            FORWARD_SHARE * host,
        ),
        Times(
            kernels.products_backward / cp,
            kernels.attention_backward * model.seen_share / cp,
            (1 - FORWARD_SHARE) * moved,
            backward_sent,
            (1 - FORWARD_SHARE) * host,
        ),
    )


def _embedding(rank: CpuRank) -> tuple[Times, Times]:
    model, tp = rank.config.model, rank.config.parallel.tp
    rows = padded_vocab_size(model, rank.vocab_size, tp) // tp
    rows += model.seq_length if model.position == "learned" else 0
    sent = parameter_bytes(rank.config.engine) * rank.tokens * model.hidden_size
    return (
        Times(tensor_parallel=rank.collective("all_reduce", sent, tp)),
        Times(elementwise=1e-9 * rank.costs.table_ns * rows * model.hidden_size),
    )


def _head(rank: CpuRank) -> tuple[Times, Times]:
    model, tp, tokens = rank.config.model, rank.config.parallel.tp, rank.tokens
    columns = padded_vocab_size(model, rank.vocab_size, tp) // tp
    forward, backward = rank.kernels.linear(tokens, model.hidden_size, columns)
    if rank.config.engine.cross_entropy not in ("plain", "in_place"):
        backward += forward  # the logits were not stored
    loss = rank.loss_seconds(tokens * columns)
    sent = parameter_bytes(rank.config.engine) * tokens * model.hidden_size
    return (
        Times(
            products=forward, elementwise=0.5 * loss, tensor_parallel=3 * rank.collective("all_reduce", 4 * tokens, tp)
        ),
        Times(products=backward, elementwise=0.5 * loss, tensor_parallel=rank.collective("all_reduce", sent, tp)),
    )


def _gathers(rank: CpuRank, layers: int) -> float:
    """Seconds in which ZeRO-3 gathers the parameters of so many layers."""
    stage = all_stages(rank.config.model, rank.config.parallel, rank.vocab_size)[0]
    each = stage.num_parameters / max(1, stage.num_layers)
    return layers * rank.collective("all_gather", parameter_bytes(rank.config.engine) * each, rank.dp)


def _after_passes(rank: CpuRank, stage: StageShapes) -> float:
    """Seconds of the collectives of a step over data-parallel ranks, and of the small ones over all."""
    engine, elements, dp = rank.config.engine, stage.num_parameters, rank.dp
    seconds = SMALL_COLLECTIVES * rank.collective("all_reduce", 0.0, rank.world_size)
    if dp == 1:
        return seconds
    times = rank.micro_batches if engine.zero_stage >= 2 and rank.modes.grad_reduction == "per_micro_batch" else 1
    kind: CollectiveKind = "reduce_scatter" if engine.zero_stage == 3 else "all_reduce"  # as deepspeed 0.19.8 on gloo
    seconds += times * rank.collective(kind, gradient_bytes(engine) * elements, dp)
    if engine.zero_stage in (1, 2) or (engine.zero_stage == 3 and rank.modes.param_gather == "per_step"):
        seconds += rank.collective("all_gather", parameter_bytes(engine) * elements, dp)
    return seconds


def _update(rank: CpuRank, stage: StageShapes) -> float:
    """Seconds of the update, and of what the engine copies around it."""
    engine, cost = rank.config.engine, rank.engine_cost
    owned = stage.num_parameters / (rank.dp if engine.zero_stage else 1)
    copied = 1e-9 * cost.parameter_ns * stage.num_parameters + 1e-6 * cost.step_layer_us * stage.num_layers
    return 1e-9 * rank.costs.update_ns * owned + copied


def _nearest(found: list[Collective], ranks: int) -> Collective:
    """That of the smallest measured group with as many ranks, or of the largest there is."""
    larger = [each for each in found if each.ranks >= ranks]
    return min(larger, key=lambda each: each.ranks) if larger else max(found, key=lambda each: each.ranks)

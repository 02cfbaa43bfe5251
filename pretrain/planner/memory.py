"""Bytes that a rank holds, by moment of a step: a count of what is allocated and freed, from the configuration alone.

states.py has what stays for the whole run. On top of it a step holds, in the names used there:

    gather      param_gather=per_step (ZeRO 3): the stage's parameters, b N, gathered piece by piece, until the update
    passes      forward and backward passes as passes/ counts them, in the order of the pipeline's schedule:
                activations, each operation's own needs, gradients until they are reduced, gathered layers
    reduction   ZeRO 1, and grad_reduction=per_step: the whole gradient, g N, and the bucket that is reduced
    update      this rank's gradients, and their copy in fp32: of one optimizer group, at ZeRO 3 of 1e9 elements; with
                optim.fused=false AdamW itself makes a tensor of as much

All of it are bytes of tensors. What the allocator rounds up and cannot reuse, the CUDA context, NCCL's buffers and
workspaces of kernels come on top: HEADROOM leaves room for them. `engine.compile=layers` saves activations by an amount
that is not known here: the plan is that of the eager layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pretrain.config.derived import micro_batches, padded_vocab_size, sharding_size
from pretrain.config.engine import EngineConfig
from pretrain.config.parallel import Chunk
from pretrain.config.run import RunConfig
from pretrain.planner.passes.chunk import Passes, chunk_passes
from pretrain.planner.passes.ends import Tables
from pretrain.planner.passes.gradients import REDUCE_BUCKET_ELEMENTS, GradientKind, reduction_peak
from pretrain.planner.passes.schedule import run_step
from pretrain.planner.passes.sizes import sizes_of
from pretrain.planner.shapes import StageShapes, all_stages
from pretrain.planner.states import UPDATE_ELEMENTS, gradient_bytes, group_shares, parameter_bytes, states_of

GATHER_ELEMENTS = 50_000_000
"""A stage whose parameters are kept for a step is gathered in pieces of this size."""
WHOLE_REDUCE_ELEMENTS = 500_000_000
"""Stage 0 reduces through a copy of this size at most (deepspeed 0.19.8)."""
HEADROOM = 0.9
"""Share of the memory that a plan may fill: the allocator's gaps, the libraries and the kernels take some too."""

Mode = Literal["per_micro_batch", "per_step"]


@dataclass(frozen=True)
class Modes:
    """`engine.grad_reduction` and `engine.param_gather` with `auto` resolved: what is done at the run's ZeRO stage."""

    grad_reduction: Mode
    param_gather: Mode


@dataclass(frozen=True)
class StageMemory:
    """Bytes on the device of each rank of a pipeline stage, those of the fullest data-parallel rank."""

    parameters: int
    """Kept between steps: whole below ZeRO 3, this rank's share there."""
    master_weights: int
    moments: int
    """Adam's two."""
    gradients: int
    """Sums over micro-batches, while those run: whole at ZeRO 0 and 1, this rank's share at 2 and 3."""
    full_gradients: int
    """ZeRO 2 and 3, per_step: what the whole gradient takes beyond that, until it is reduced."""
    gathered: int
    """ZeRO 3, per_step: the gathered parameters, beside the partitions."""
    gather_buffer: int
    """ZeRO 3, per_step: beside them while they are gathered."""
    buffers: int
    """Buffers that stay: sequence parallelism's, the bucket of ZeRO 3, offload's."""
    activations: int
    """The most that forward passes leave for backward passes."""
    in_gather: int
    """All bytes at the most while parameters are gathered for the step; 0: that does not happen."""
    in_forward: int
    """All bytes at the most in a forward pass."""
    in_backward: int
    """The same in a backward pass, and so on."""
    in_reduction: int
    in_update: int
    stays_between_steps: int
    """Bytes between two steps."""
    host: int
    """Bytes that this rank offloads to host memory."""
    disk: int
    """Bytes that this rank offloads to a disk of the node."""

    @property
    def peak(self) -> int:
        """The most bytes at one time."""
        return max(self.in_gather, self.in_forward, self.in_backward, self.in_reduction, self.in_update)


def plan_memory(
    config: RunConfig, vocab_size: int, world_size: int, modes: Modes, stages: Sequence[StageShapes] | None = None
) -> list[StageMemory]:
    """The memory of each pipeline stage's ranks; the layout must be legal on `world_size` ranks."""
    stages = stages or all_stages(config.model, config.parallel, vocab_size)
    dp = sharding_size(config.parallel, world_size)
    assert dp is not None
    number = micro_batches(config.train, dp // config.parallel.cp) or 1
    return [_Stage(config, shapes, dp, modes, vocab_size).memory(rank, number) for rank, shapes in enumerate(stages)]


def fullest_stage(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    modes: Modes,
    stages: Sequence[StageShapes],
    limit: float | None = None,
) -> int | None:
    """The peak of the fullest stage in bytes; None if it is above `limit`, which stops at the first such stage."""
    dp = sharding_size(config.parallel, world_size)
    assert dp is not None
    number = micro_batches(config.train, dp // config.parallel.cp) or 1
    largest = 0
    for rank, shapes in enumerate(stages):
        stage = _Stage(config, shapes, dp, modes, vocab_size)
        if limit is not None and stage.outside_passes(number) > limit:
            return None
        largest = max(largest, stage.memory(rank, number).peak)
        if limit is not None and largest > limit:
            return None
    return largest


def choose_modes(config: RunConfig, vocab_size: int, world_size: int, budget_bytes: int | None) -> Modes:
    """The modes that `auto` chooses: those with the least traffic whose fullest stage fits in 0.9 of the budget.

    Keeping parameters gathered is preferred to keeping whole gradients: it saves more traffic. Without a known budget,
    and where nothing fits, the modes that hold least are taken. All ranks must be given one budget.
    """
    engine = config.engine
    options = mode_options(engine)
    if budget_bytes is not None and len(options) > 1:
        stages = all_stages(config.model, config.parallel, vocab_size)
        for modes in options:
            peak = max(stage.peak for stage in plan_memory(config, vocab_size, world_size, modes, stages))
            if peak <= HEADROOM * budget_bytes:
                return modes
    return options[-1]


def mode_options(engine: EngineConfig) -> list[Modes]:
    """The modes that `auto` chooses among, least traffic first; those that are set stay as they are."""
    return [Modes(reduction, gather) for gather in _gathers(engine) for reduction in _reductions(engine)]


def gather_pieces(sizes: Sequence[int]) -> list[slice]:
    """Neighbours among parameters of these sizes, together of GATHER_ELEMENTS at most; a larger one is alone."""
    pieces, first, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and total + size > GATHER_ELEMENTS:
            pieces.append(slice(first, number))
            first, total = number, 0
        total += size
    return [*pieces, slice(first, len(sizes))]


class _Stage:
    """A stage under one pair of modes."""

    def __init__(self, config: RunConfig, shapes: StageShapes, dp: int, modes: Modes, vocab_size: int) -> None:
        self.config, self.shapes, self.dp, self.vocab_size = config, shapes, dp, vocab_size
        engine = config.engine
        self.zero, self.parameter, self.gradient = engine.zero_stage, parameter_bytes(engine), gradient_bytes(engine)
        self.contiguous = self.gradient == self.parameter
        """Whether gradients are copied into the bucket of a reduction, which then has its own memory."""
        self.parts = group_shares(config, shapes, dp)
        self.share, self.whole = sum(self.parts), shapes.num_parameters
        self.sizes, self.states = sizes_of(config), states_of(config, shapes, dp)
        self.per_step = self.zero < 2 or modes.grad_reduction == "per_step"
        self.keeps_gathered = self.zero == 3 and dp > 1 and modes.param_gather == "per_step"
        self.gathers = self.zero == 3 and dp > 1 and not self.keeps_gathered
        self.offloads = engine.offload.optimizer != "none"
        self.keeps_sums = self.offloads and self.zero == 2 and not self.contiguous
        """Whether offload leaves this rank's sums in fp32 on the device, from the first reduction to the update."""
        self.bucket = self.gradient * REDUCE_BUCKET_ELEMENTS if self.contiguous and self.zero else 0
        if self.offloads and self.zero == 1:
            self.bucket = self.parameter * REDUCE_BUCKET_ELEMENTS

    @property
    def buffers(self) -> int:
        buffers = (self.sizes.whole if self.sizes.parts > 1 else 0) + (self.bucket if self.zero == 3 else 0)
        if self.offloads and self.zero < 3:
            buffers += self.parameter * max(self.shapes.sizes)  # through which gradients go to the host
        return buffers

    @property
    def stays(self) -> int:
        states = self.states
        stays = states.parameters + states.master_weights + states.moments + self.buffers
        return stays + (states.gradients if self.zero == 3 else 0)

    @property
    def gathered(self) -> int:
        return self.parameter * self.whole if self.keeps_gathered else 0

    def tokens(self, micro_batches: int) -> int:
        return micro_batches * self.sizes.samples * (self.config.model.seq_length + 1) * 8

    def outside_passes(self, micro_batches: int) -> int:
        """Bytes without those of passes: the peak is never less."""
        return self.stays + self.gathered + self.tokens(micro_batches)

    def memory(self, rank: int, micro_batches: int) -> StageMemory:
        states, sizes, chunks = self.states, self.sizes, self.shapes.chunks
        stays, gathered, tokens = self.stays, self.gathered, self.tokens(micro_batches)
        gather_buffer = self.parameter * _gather_buffer(self.shapes, self.dp) if self.keeps_gathered else 0
        # Between stages: tensors on their way, and the last input of each chunk, which stays with its gradient.
        starts, ends = sum(not chunk.embedding for chunk in chunks), sum(not chunk.head for chunk in chunks)
        inputs = 2 * sizes.hidden * starts
        base = stays + gathered + tokens
        running = run_step([self._passes(chunk) for chunk in chunks], self.config.parallel, rank, micro_batches)
        in_transit = sizes.hidden * (starts + ends)
        return StageMemory(
            parameters=states.parameters,
            master_weights=states.master_weights,
            moments=states.moments,
            gradients=states.gradients,
            full_gradients=self._full_gradients(),
            gathered=gathered,
            gather_buffer=gather_buffer,
            buffers=self.buffers,
            activations=running.activations,
            in_gather=base + inputs + gather_buffer if self.keeps_gathered else 0,
            in_forward=base + in_transit + running.forward,
            in_backward=base + in_transit + running.backward + self._sum_on_its_way(),
            in_reduction=base + inputs + running.after + self._reduction(),
            in_update=stays + inputs + tokens + self._update(),
            stays_between_steps=stays + inputs,
            host=states.host,
            disk=states.disk,
        )

    def _passes(self, chunk: Chunk) -> Passes:
        model, tp = self.config.model, self.config.parallel.tp
        columns = padded_vocab_size(model, self.vocab_size, tp) // tp
        engine = self.config.engine
        tables = Tables(
            columns=columns,
            real=min(columns, self.vocab_size),
            cross_entropy=engine.cross_entropy,
            compiled=engine.compile != "none",
            shared=model.tie_embeddings and chunk.embedding and chunk.head,
            copied=model.tie_embeddings and chunk.head and not chunk.embedding,
        )
        # Equal chunks are counted once: where they start matters only to dense layers before those with experts.
        first = min(chunk.first, model.experts.dense_layers) if model.experts.count else 0
        return chunk_passes(self.sizes, tables, engine.recompute, replace(chunk, first=first), self._gradients())

    def _gradients(self) -> GradientKind:
        """Return the kind, with fields that do not matter at one value: passes are counted once for equal kinds."""
        if self.per_step:
            return GradientKind(self.parameter, self.gradient, self.gathers, self.bucket if self.zero == 1 else 0)
        is_second = self.zero == 2
        return GradientKind(
            self.parameter,
            self.gradient,
            self.gathers,
            self.bucket if is_second else 0,
            in_buckets=True,
            contiguous=self.contiguous,
            share=self.share if is_second else 0,
        )

    def _sum_on_its_way(self) -> int:
        """Offload adds to the sums of earlier micro-batches by way of a copy on the device."""
        if not self.offloads or self.per_step:
            return 0
        return 4 * max(self.parts) if self.zero == 3 else self.gradient * self.share * self.keeps_sums

    def _full_gradients(self) -> int:
        if self.zero < 2 or not self.per_step:
            return 0
        return self.gradient * (max(self.whole - self.share, 0) if self.zero == 2 else self.whole)

    def _reduction(self) -> int:
        """Beside the whole gradient."""
        if self.zero == 0:
            return self.gradient * min(WHOLE_REDUCE_ELEMENTS, self.whole) if self.dp > 1 else 0
        if not self.per_step or (self.contiguous and self.zero == 3):
            return 0
        if self.contiguous:  # gradients move into the bucket, and this rank's part out of it
            beyond = self.gradient * max(self.share - REDUCE_BUCKET_ELEMENTS, 0)
            return beyond + (self.bucket if self.zero == 2 else 0)
        # Optimizer group by optimizer group: matrices, then vectors.
        both = list(zip(self.shapes.parameters, self.shapes.sizes, strict=True))
        ordered = [size for is_vector in (False, True) for (_, shape), size in both if (len(shape) < 2) == is_vector]
        flat = self.gradient * reduction_peak(ordered, REDUCE_BUCKET_ELEMENTS)
        return flat + (self.gradient * self.share * (1 + self.keeps_sums) if self.zero == 2 else 0)

    def _update(self) -> int:
        """Gradients, their copies in fp32, and what AdamW makes."""
        if self.offloads:
            return self.gradient * self.share if self.keeps_sums else 0
        copies = 4 * (min(self.share, UPDATE_ELEMENTS) if self.zero == 3 else max(self.parts))
        scratch = 0 if self.config.optim.fused else copies
        if self.zero == 0:
            return self.states.gradients + (copies if self.gradient < 4 else 0) + scratch
        if self.zero == 3:
            return copies + scratch
        # ZeRO 2 sums 16-bit gradients in fp32 in one piece, which is not copied.
        return self.gradient * self.share + (copies if self.zero == 1 or self.contiguous else 0) + scratch


def _gather_buffer(shapes: StageShapes, dp: int) -> int:
    """Elements of the largest buffer; one parameter alone is gathered in its own place."""
    pieces = [shapes.sizes[piece] for piece in gather_pieces(shapes.sizes)]
    return max((sum(-(-size // dp) * dp for size in sizes) for sizes in pieces if len(sizes) > 1), default=0)


def _gathers(engine: EngineConfig) -> list[Mode]:
    if engine.zero_stage < 3:
        return ["per_step"]
    if engine.offload.params == "nvme":
        return ["per_micro_batch"]
    return ["per_step", "per_micro_batch"] if engine.param_gather == "auto" else [engine.param_gather]


def _reductions(engine: EngineConfig) -> list[Mode]:
    if engine.zero_stage < 2:
        return ["per_step"]
    if engine.offload.optimizer == "nvme":
        return ["per_micro_batch"]
    return ["per_step", "per_micro_batch"] if engine.grad_reduction == "auto" else [engine.grad_reduction]

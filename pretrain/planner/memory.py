"""Bytes that a rank holds, by ZeRO stage and mode, as plain arithmetic on the configuration.

N: parameters of this rank's stage (its tensor-parallel part, vocabulary padding and a tied copy included); d:
data-parallel size; b: bytes of the precision (4 in fp32, 2 in bf16 and fp16); g: bytes of a gradient sum (4, or b with
engine.grad_accum_dtype=same). Kept for the whole run, as deepspeed 0.19.8 keeps it:

    engine.zero_stage     0, fp32   0, 16 bits   1        2        3
    parameters            4 N       2 N          b N      b N      b N/d
    master weights        -         4 N          4 N/d    4 N/d    4 N/d     in fp32 too, except at stage 0
    Adam's two moments    8 N       8 N          8 N/d    8 N/d    8 N/d
    gradients             g N       g N          g N      g N/d    g N/d     at stage 3 between the steps too

and, on top of it, while the micro-batches of a step run:

    grad_reduction=per_step          2      + g N - g N/d           the whole gradient: this rank keeps its share of it
                                     3      + g N                   the whole gradient, beside this rank's share
    param_gather=per_step            3      + b N                   all parameters, gathered once; while that is done
                                                                    b 50 million beside them, later activations
    param_gather=per_micro_batch     3      + b (2 layers + the larger table)
    a bucket for the reduction       1-3    + g 50 million          at stage 3 between the steps too
    activations                             an estimate: activations.py

The update comes when those are gone, and at stage 1 with the gradients cut to g N/d; it copies its share of them in
fp32, 4 N/d (of one optimizer group at a time, at stage 3 of 1e9 elements). With optim.fused=false AdamW itself makes a
tensor of as much.

N/d is rounded up: at stage 3 for each parameter, at stages 1 and 2 for each optimizer group, to an even number; there
the gradients of a parameter that crosses the border of two partitions may be whole on both sides (less than two
parameters for each group, not counted). engine.offload moves the optimizer's states, with this rank's share of the
gradients at stage 3 and (unless 16-bit gradients are summed in fp32) 2, or the shares of the parameters, to the host's
memory; with nvme to a disk: the optimizer's states through buffers of one sub-group in the host's memory, the
parameters, except partitions under a MiB, through one of a sub-group too and as many partitions as are gathered at one
time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pretrain.config.derived import data_parallel_size, micro_batches
from pretrain.config.engine import EngineConfig
from pretrain.config.run import RunConfig
from pretrain.planner.activations import activation_bytes
from pretrain.planner.shapes import EMBEDDING, HEAD, POSITIONS, StageShapes, all_stages, layer_size, layer_tensors

REDUCE_BUCKET_ELEMENTS = 50_000_000
"""Gradients are reduced in buckets of this size."""
GATHER_ELEMENTS = 50_000_000
"""A stage whose parameters are kept for a step is gathered in pieces of this size."""
WHOLE_REDUCE_ELEMENTS = 500_000_000
"""Stage 0 reduces through a copy of this size at most (deepspeed 0.19.8)."""
UPDATE_ELEMENTS = 1_000_000_000
"""Stage 3 updates sub-groups of this size (deepspeed 0.19.8)."""
SWAPPED_BYTES = 2**20
"""Smaller partitions of parameters do not go to the disk (deepspeed 0.19.8)."""
HEADROOM = 0.9
"""Share of the memory that a plan may fill: the allocator's gaps, the libraries and the kernels take some too."""

Mode = Literal["per_micro_batch", "per_step"]


@dataclass(frozen=True)
class Modes:
    """`engine.grad_reduction` and `engine.param_gather` without `auto`: at every ZeRO stage, what it does."""

    grad_reduction: Mode
    param_gather: Mode


@dataclass(frozen=True)
class StageMemory:
    """Bytes on the device of each rank of a pipeline stage, data-parallel rank 0's where they differ by padding."""

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
    """ZeRO-3: the most bytes of gathered parameters at one time, beside the partitions."""
    gather_buffer: int
    """ZeRO 3, per_step: beside them while they are gathered, before there are activations."""
    buffers: int
    """Buffers for reductions."""
    activations: int
    """Estimated bytes of activations."""
    in_update: int
    """Gradients in the update that follows, with the copies in fp32 that it reads."""
    stays_between_steps: int
    """Bytes of all these between two steps."""
    host: int
    """Bytes that this rank offloads to host memory."""
    disk: int
    """Bytes that this rank offloads to a disk of the node."""

    @property
    def peak(self) -> int:
        """The most bytes at one time: while the micro-batches run, or in the update after them."""
        kept = self.parameters + self.master_weights + self.moments + self.buffers
        step = self.gathered + max(self.full_gradients + self.activations, self.gather_buffer)
        return kept + max(self.gradients + step, self.in_update)


def plan_memory(
    config: RunConfig, vocab_size: int, world_size: int, modes: Modes, stages: Sequence[StageShapes] | None = None
) -> list[StageMemory]:
    """The memory of each pipeline stage's ranks; the layout must be legal on `world_size` ranks."""
    stages = stages or all_stages(config.model, config.parallel, vocab_size)
    dp = data_parallel_size(config.parallel, world_size)
    assert dp is not None
    number = micro_batches(config.train, dp) or 1
    return [_stage(config, shapes, rank, dp, number, modes, vocab_size) for rank, shapes in enumerate(stages)]


def choose_modes(config: RunConfig, vocab_size: int, world_size: int, budget_bytes: int | None) -> Modes:
    """The modes that `auto` chooses: those with the least traffic whose fullest stage fits in 0.9 of the budget.

    Keeping parameters gathered is preferred to keeping whole gradients: it saves more traffic. Without a known budget,
    and where nothing fits, the modes that hold least are taken. All ranks must be given one budget.
    """
    engine = config.engine
    stages = all_stages(config.model, config.parallel, vocab_size)
    options = mode_options(engine)
    if budget_bytes is not None:
        for modes in options:
            peak = max(stage.peak for stage in plan_memory(config, vocab_size, world_size, modes, stages))
            if peak <= HEADROOM * budget_bytes:
                return modes
    return options[-1]


def mode_options(engine: EngineConfig) -> list[Modes]:
    """The modes that `auto` chooses among, least traffic first; those that are set stay as they are."""
    return [Modes(reduction, gather) for gather in _gathers(engine) for reduction in _reductions(engine)]


def gradient_bytes(engine: EngineConfig) -> int:
    """Bytes of one element of a gradient sum."""
    return 4 if engine.grad_accum_dtype == "fp32" else parameter_bytes(engine)


def parameter_bytes(engine: EngineConfig) -> int:
    """Bytes of one element of a parameter."""
    return 4 if engine.precision == "fp32" else 2


def shares(shapes: StageShapes, zero_stage: int, dp: int, *, tied_apart: bool) -> list[int]:
    """Elements that one data-parallel rank keeps of what is split: of each parameter (ZeRO 3) or optimizer group."""
    if zero_stage == 3:
        return [-(-size // dp) for size in shapes.sizes]
    groups: dict[tuple[bool, bool], int] = {}
    for (name, shape), size in zip(shapes.parameters, shapes.sizes, strict=True):
        is_decayed = len(shape) > 1 and name != POSITIONS
        key = is_decayed, tied_apart and name == EMBEDDING
        groups[key] = groups.get(key, 0) + size
    return [2 * -(-size // (2 * dp)) for size in groups.values()]


def partitions_in_memory(config: RunConfig, shapes: StageShapes, dp: int) -> tuple[int, int]:
    """With parameters on a disk: the number of partitions of one rank in memory, and the elements of the largest.

    They are those of what is gathered (`_gathered_elements`), and both tables where a stage has both.
    """
    sizes = [-(-math.prod(shape) // dp) for _, shape in shapes.parameters]
    swapped = [size for size in sizes if size * parameter_bytes(config.engine) >= SWAPPED_BYTES]
    layers = 2 * layer_tensors(config.model, config.parallel.tp)
    return min(layers + 3, max(len(swapped), 1)), max(swapped, default=1)


def _stage(
    config: RunConfig, shapes: StageShapes, rank: int, dp: int, number: int, modes: Modes, vocab_size: int
) -> StageMemory:
    engine, zero = config.engine, config.engine.zero_stage
    parameter, gradient, whole = parameter_bytes(engine), gradient_bytes(engine), shapes.num_parameters
    tied_apart = config.model.tie_embeddings and config.parallel.pp > 1
    parts = shares(shapes, zero, dp, tied_apart=tied_apart) if zero else [whole]
    share = sum(parts)
    has_masters = zero > 0 or engine.precision != "fp32"

    parameters = parameter * {0: whole, 3: share}.get(zero, share * dp)
    masters, moments = 4 * share * has_masters, 8 * share
    gradients = gradient * (share if zero >= 2 else whole)
    copies = 4 * (min(share, UPDATE_ELEMENTS) if zero == 3 else max(parts))
    scratch = 0 if config.optim.fused else copies
    if zero == 0:
        buffers = gradient * min(WHOLE_REDUCE_ELEMENTS, whole) * (dp > 1)
        in_update = gradients if gradient == 4 else gradients + copies
    else:
        buffers = gradient * REDUCE_BUCKET_ELEMENTS
        in_update = copies + (gradient * share if zero == 1 else gradients)
    in_update += scratch

    full_gradients = 0
    if modes.grad_reduction == "per_step" and zero >= 2:
        full_gradients = gradient * (whole if zero == 3 else max(whole - share, 0))

    host = disk = 0
    if engine.offload.optimizer == "nvme":
        # DeepSpeed's buffers for one sub-group: masters, moments, gradients; and the sums.
        host += 4 * 4 * min(share, UPDATE_ELEMENTS) + gradient * share + scratch
        disk += masters + moments + 4 * share
        masters = moments = in_update = gradients = 0
    elif engine.offload.optimizer == "cpu":
        host += scratch + ((4 + gradient) * share if zero >= 2 else 4 * share)  # what Adam reads, and the sums
        host += masters + moments
        masters = moments = in_update = 0
        # Stage 2 sums 16-bit gradients in fp32 on the device all the same (deepspeed 0.19.8).
        if not (zero == 1 or (zero == 2 and gradient > parameter)):
            full_gradients += gradients if zero == 2 and full_gradients else 0
            gradients = 0
    if engine.offload.params == "nvme":
        kept, elements = partitions_in_memory(config, shapes, dp)
        small = parameter * sum(size for size in parts if parameter * size < SWAPPED_BYTES)
        host += small + parameter * (kept * elements + min(share, UPDATE_ELEMENTS))
        disk += parameters - small
        parameters = 0
    elif engine.offload.params == "cpu":
        host += parameters
        parameters = 0
    return StageMemory(
        parameters=parameters,
        master_weights=masters,
        moments=moments,
        gradients=gradients,
        full_gradients=full_gradients,
        gathered=parameter * _gathered_elements(config, shapes, modes) if zero == 3 else 0,
        gather_buffer=parameter * _gather_buffer(shapes, dp) if zero == 3 and modes.param_gather == "per_step" else 0,
        buffers=buffers,
        activations=activation_bytes(config, shapes, rank, number, vocab_size),
        in_update=in_update,
        stays_between_steps=parameters + masters + moments + (gradients + buffers if zero == 3 else 0),
        host=host,
        disk=disk,
    )


def _gathered_elements(config: RunConfig, shapes: StageShapes, modes: Modes) -> int:
    if modes.param_gather == "per_step":
        return shapes.num_parameters
    tables = [
        size
        for (name, _), size in zip(shapes.parameters, shapes.sizes, strict=True)
        if name in (EMBEDDING, POSITIONS, HEAD)
    ]
    # A layer and the one that comes next, and the embedding (or the head, which is never there at the same time).
    return min(shapes.num_layers, 2) * layer_size(config.model, config.parallel.tp) + max(tables, default=0)


def gather_pieces(sizes: Sequence[int]) -> list[slice]:
    """Neighbours among parameters of these sizes, together of GATHER_ELEMENTS at most; a larger one is alone."""
    pieces, first, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and total + size > GATHER_ELEMENTS:
            pieces.append(slice(first, number))
            first, total = number, 0
        total += size
    return [*pieces, slice(first, len(sizes))]


def _gather_buffer(shapes: StageShapes, dp: int) -> int:
    """Elements of the largest buffer; one parameter alone is gathered in its own place, one rank gathers nothing."""
    if dp == 1:
        return 0
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

"""Count what a rank keeps for the whole run at each ZeRO stage: on the device, in the host's memory, on a disk.

N: parameters of this rank's stage (its tensor-parallel part, vocabulary padding and a tied copy included); d:
data-parallel size; b: bytes of the precision (4 in fp32, 2 in bf16 and fp16); g: bytes of a gradient sum (4, or b with
engine.grad_accum_dtype=same). As deepspeed 0.19.8 keeps it:

    engine.zero_stage     0, fp32   0, 16 bits   1        2        3
    parameters            4 N       2 N          b N      b N      b N/d
    master weights        -         4 N          4 N/d    4 N/d    4 N/d     in fp32 too, except at stage 0
    Adam's two moments    8 N       8 N          8 N/d    8 N/d    8 N/d     4 instead of 8 for Muon's matrices
    gradients             g N       g N          g N      g N/d    g N/d     at stage 3 between the steps too

N/d is rounded up: at stage 3 for each parameter, at stages 1 and 2 for each optimizer group, to an even number. Masters
and moments are always fp32: the engine has no other precision for them. engine.offload moves the optimizer's states,
with this rank's share of the gradients at stage 3 and (unless 16-bit gradients are summed in fp32) 2, or the shares of
the parameters, to the host's memory; with nvme to a disk: the optimizer's states through buffers of one sub-group in
the host's memory, the parameters, except partitions under a MiB, through one of a sub-group too and as many partitions
as are gathered at one time.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial

from pretrain.config.engine import EngineConfig
from pretrain.config.run import RunConfig
from pretrain.optim.update import Update, update_of
from pretrain.planner.shapes import EMBEDDING, Shape, StageShapes, layer_tensors

EXPERTS = ".mlp.experts."
"""A part of the names of experts' parameters."""
UPDATE_ELEMENTS = 1_000_000_000
"""Stage 3 updates sub-groups of this size (deepspeed 0.19.8)."""
SWAPPED_BYTES = 2**20
"""Smaller partitions of parameters do not go to the disk (deepspeed 0.19.8)."""


@dataclass(frozen=True)
class States:
    """Bytes of one rank."""

    parameters: int
    """On the device: whole below ZeRO 3, this rank's share there."""
    master_weights: int
    """On the device."""
    moments: int
    """Adam's two, on the device."""
    gradients: int
    """Sums over micro-batches on the device: whole at ZeRO 0 and 1, this rank's share at 2 and 3."""
    host: int
    disk: int


def gradient_bytes(engine: EngineConfig) -> int:
    """Bytes of one element of a gradient sum."""
    return 4 if engine.grad_accum_dtype == "fp32" else parameter_bytes(engine)


def parameter_bytes(engine: EngineConfig) -> int:
    """Bytes of one element of a parameter."""
    return 4 if engine.precision == "fp32" else 2


def group_shares(config: RunConfig, shapes: StageShapes, dp: int) -> list[int]:
    """Elements that a rank updates: by optimizer group (ZeRO 1 and 2), by parameter (3), or all together (0)."""
    if config.engine.zero_stage == 0:
        return [shapes.num_parameters]
    return [share for part, ranks in _parts(config, shapes, dp) for share in _shares(config, part, ranks)]


def _parts(config: RunConfig, shapes: StageShapes, dp: int) -> list[tuple[StageShapes, int]]:
    """The parameters, with the number of ranks that divide them: experts may have another number than the rest."""
    parallel = config.parallel
    holders = parallel.tp * dp // (parallel.ep * parallel.etp)
    if not config.model.experts.count or holders == dp:
        return [(shapes, dp)]
    experts, others = (
        tuple(item for item in shapes.parameters if (EXPERTS in item[0]) == wanted) for wanted in (True, False)
    )
    return [(replace(shapes, parameters=others), dp), (replace(shapes, parameters=experts), holders)]


def _shares(config: RunConfig, shapes: StageShapes, ranks: int) -> list[int]:
    tied_apart = config.model.tie_embeddings and config.parallel.pp > 1
    group = partial(_update_of, config)
    return shares(shapes, config.engine.zero_stage, ranks, tied_apart=tied_apart, group=group)


def _padded(config: RunConfig, shapes: StageShapes, dp: int) -> int:
    """Elements of the flat buffers of all optimizer groups (ZeRO 1 and 2)."""
    return sum(ranks * sum(_shares(config, part, ranks)) for part, ranks in _parts(config, shapes, dp))


def shares(
    shapes: StageShapes, zero_stage: int, dp: int, *, tied_apart: bool, group: Callable[[str, Shape], Hashable]
) -> list[int]:
    """Elements that one data-parallel rank keeps of what is split: of each parameter (ZeRO 3) or optimizer group.

    `group`: parameters with equal values are in one group.
    """
    if zero_stage == 3:
        return [-(-size // dp) for size in shapes.sizes]
    groups: dict[tuple[Hashable, bool], int] = {}
    for (name, shape), size in zip(shapes.parameters, shapes.sizes, strict=True):
        key = group(name, shape), tied_apart and name == EMBEDDING
        groups[key] = groups.get(key, 0) + size
    return [2 * -(-size // (2 * dp)) for size in groups.values()]


def _update_of(config: RunConfig, name: str, shape: Shape) -> Update:
    return update_of(name, len(shape), config.model, config.optim)


def _momentum_share(config: RunConfig, shapes: StageShapes, dp: int) -> int:
    """Elements that a rank updates with one moment instead of two."""
    of_muon = [(name, shape) for name, shape in shapes.parameters if _update_of(config, name, shape).is_muon]
    return sum(group_shares(config, replace(shapes, parameters=tuple(of_muon)), dp))


def partitions_in_memory(config: RunConfig, shapes: StageShapes, dp: int) -> tuple[int, int]:
    """With parameters on a disk: the number of partitions of one rank in memory, and the elements of the largest.

    They are those of a layer and the next, and both tables.
    """
    sizes = [-(-math.prod(shape) // dp) for _, shape in shapes.parameters]
    swapped = [size for size in sizes if size * parameter_bytes(config.engine) >= SWAPPED_BYTES]
    layers = 2 * layer_tensors(config.model, config.parallel)
    return min(layers + 3, max(len(swapped), 1)), max(swapped, default=1)


def states_of(config: RunConfig, shapes: StageShapes, dp: int) -> States:
    engine, zero = config.engine, config.engine.zero_stage
    parameter, gradient, whole = parameter_bytes(engine), gradient_bytes(engine), shapes.num_parameters
    parts = group_shares(config, shapes, dp)
    share = sum(parts)
    held = {0: whole, 3: share}[zero] if zero in (0, 3) else _padded(config, shapes, dp)
    parameters = parameter * held
    masters, moments = (
        4 * share * (zero > 0 or engine.precision != "fp32"),
        8 * share - 4 * _momentum_share(config, shapes, dp),
    )
    gradients = gradient * (share if zero >= 2 else whole)
    copies = 4 * (min(share, UPDATE_ELEMENTS) if zero == 3 else max(parts))
    scratch = 0 if config.optim.fused else copies
    host = disk = 0
    if engine.offload.optimizer == "nvme":
        # DeepSpeed's buffers for one sub-group: masters, moments, gradients; and the sums.
        host += 4 * 4 * min(share, UPDATE_ELEMENTS) + gradient * share + scratch
        disk += masters + moments + 4 * share
        masters = moments = gradients = 0
    elif engine.offload.optimizer == "cpu":
        host += scratch + ((4 + gradient) * share if zero >= 2 else 4 * share)  # what Adam reads, and the sums
        host += masters + moments
        masters = moments = 0
        # Stage 2 sums 16-bit gradients in fp32 on the device all the same (deepspeed 0.19.8).
        if not (zero == 1 or (zero == 2 and gradient > parameter)):
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
    return States(parameters, masters, moments, gradients, host, disk)

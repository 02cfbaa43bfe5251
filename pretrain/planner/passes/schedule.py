"""The bytes of a step by moment: which passes run when, and what the reduction and the update hold.

Megatron's schedules (megatron-core 0.16.1) and deepspeed 0.19.8. The first micro-batches of a step decide the peak:
afterwards the passes repeat.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pretrain.config.parallel import ParallelConfig
from pretrain.planner.passes.chunk import Passes

Turn = tuple[bool, int]
"""Whether it is a backward pass, and of which of the stage's chunks."""


def schedule(parallel: ParallelConfig, pp_rank: int, micro_batches: int) -> Iterator[Turn]:
    """The passes of a stage in their order.

    1F1B (Narayanan et al. 2021): forward passes for each stage to come, then one forward and one backward in turn.
    Interleaved: Megatron's warm-up, pp micro-batches through a chunk before it takes the next.
    """
    pp, vp = parallel.pp, parallel.vp
    total = micro_batches * vp
    behind = pp - pp_rank - 1
    warm_up = min(behind if vp == 1 else 2 * behind + (vp - 1) * pp, total)
    for turn in range(warm_up):
        yield False, turn // pp % vp
    for turn in range(total - warm_up):
        yield False, (turn + warm_up) // pp % vp
        yield True, vp - 1 - turn // pp % vp
    for turn in range(total - warm_up, total):
        yield True, vp - 1 - turn // pp % vp


@dataclass(frozen=True)
class Running:
    """Bytes beside the states while the micro-batches run."""

    activations: int
    """The most that forward passes have left for backward passes."""
    forward: int
    """The most in a forward pass."""
    backward: int
    after: int
    """When all have run."""


def run_step(passes: Sequence[Passes], parallel: ParallelConfig, pp_rank: int, micro_batches: int) -> Running:
    now = forward = backward = activations = kept = 0
    seen: set[int] = set()
    for is_backward, chunk in schedule(parallel, pp_rank, min(micro_batches, 4 * parallel.pp)):
        if is_backward:
            one = passes[chunk].later if chunk in seen else passes[chunk].backward
            seen.add(chunk)
            backward = max(backward, now + one.peak)
            kept -= passes[chunk].forward.change
        else:
            one = passes[chunk].forward
            forward = max(forward, now + one.peak)
            kept += one.change
            activations = max(activations, kept)
        now += one.change
    return Running(activations, forward, backward, now)

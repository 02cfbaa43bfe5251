"""The ranks and the steps that a dry run takes: as few as show every stage's memory and traffic."""

from dataclasses import dataclass

from pretrain.config.parallel import ParallelConfig
from pretrain.planner.shapes import StageShapes


@dataclass(frozen=True)
class StageClass:
    """Pipeline stages that hold the same layers, embedding and head."""

    first: int
    """The one that is run. It has the most micro-batches between forward and backward passes."""
    others: tuple[int, ...]
    """Those that it stands for too."""


def distinct_stages(stages: list[StageShapes]) -> list[StageClass]:
    """The classes of stages, in the order of the pipeline."""
    classes: dict[object, list[int]] = {}
    for number, stage in enumerate(stages):
        content = tuple((chunk.num_layers, chunk.embedding, chunk.head) for chunk in stage.chunks)
        classes.setdefault(content, []).append(number)
    return [StageClass(first, tuple(others)) for first, *others in classes.values()]


def steps_to_take(parallel: ParallelConfig, micro_batches: int, pp_rank: int) -> tuple[int, ...]:
    """The number of micro-batches of each step that is run on a stage.

    The first step makes what is made once. The last has as many as the schedule needs for its steady state, in which
    the stage holds as many activations as it ever does, and one more, which is added to the gradients of those before.
    If that is less than a whole step, a third one between them shows what grows with each micro-batch.
    """
    turn = parallel.pp if parallel.vp > 1 else 1  # an interleaved schedule takes this many in turn
    steady = 2 * turn if parallel.vp > 1 else max(parallel.pp - pp_rank, 1) + 1
    if steady >= micro_batches:
        return turn, micro_batches
    return turn, turn, steady

"""Print the memory of pipeline stages: its parts, its moments, and hints."""

from collections.abc import Callable, Sequence

from pretrain.config.derived import sharding_size
from pretrain.config.run import RunConfig
from pretrain.planner.memory import StageMemory

PARTS: dict[str, Callable[[StageMemory], int]] = {
    "params": lambda stage: stage.parameters,
    "gathered": lambda stage: stage.gathered,
    "grads": lambda stage: stage.gradients,
    "whole grads": lambda stage: stage.full_gradients,
    "masters": lambda stage: stage.master_weights,
    "moments": lambda stage: stage.moments,
    "buffers": lambda stage: stage.buffers,
    "activations": lambda stage: stage.activations,
    "host": lambda stage: stage.host,
    "disk": lambda stage: stage.disk,
}
MOMENTS: dict[str, Callable[[StageMemory], int]] = {
    "gather": lambda stage: stage.in_gather,
    "forward": lambda stage: stage.in_forward,
    "backward": lambda stage: stage.in_backward,
    "reduction": lambda stage: stage.in_reduction,
    "update": lambda stage: stage.in_update,
    "peak": lambda stage: stage.peak,
    "between steps": lambda stage: stage.stays_between_steps,
}


def columns(
    memory: Sequence[StageMemory], shown: dict[str, Callable[[StageMemory], int]], unit: int
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows in units of `unit` bytes; columns of zeros are left out."""
    kept = {name: value for name, value in shown.items() if any(map(value, memory))}
    rows = [
        [str(rank), *(f"{value(stage) / unit:.1f}" for value in kept.values())] for rank, stage in enumerate(memory)
    ]
    return ["stage", *kept], rows


def hints(config: RunConfig, memory: Sequence[StageMemory], world_size: int) -> list[str]:
    """Settings that take memory for nothing here."""
    engine, dp = config.engine, sharding_size(config.parallel, world_size)
    if dp != 1 or engine.zero_stage != 1 or engine.offload.optimizer != "none":
        return []
    fullest = any(stage.in_update == stage.peak for stage in memory)
    return [
        "hint: on one data-parallel rank ZeRO-1 partitions nothing, and its update copies the gradients in fp32"
        + (", which makes the peak" if fullest else "")
        + "; engine.zero_stage=0 copies none"
    ]

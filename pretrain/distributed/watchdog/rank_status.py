"""The process that runs a rank, and its status when other ranks ask for it."""

from dataclasses import dataclass

from pretrain.distributed.grid import ParallelLayout
from pretrain.outcome.failure import Stage


@dataclass(frozen=True)
class RankProcess:
    """A rank's place in the layout, and the process that runs it."""

    rank: int
    coordinates: str
    host: str
    machine: str
    """Equal for two processes if each can see the other's process id."""
    pid: int
    """0: the rank has not connected."""

    def __str__(self) -> str:
        if not self.pid:
            return f"rank {self.rank} ({self.coordinates}, never connected)"
        return f"rank {self.rank} ({self.coordinates}, host {self.host}, process {self.pid})"


@dataclass(frozen=True)
class RankStatus:
    """The current activity of a rank."""

    waits: bool
    """It is inside a collective or waits for the GPU, that is, for other ranks."""
    where: str
    """File, line and function."""
    still_seconds: float
    """Time since its main thread last moved."""
    stage: Stage
    step: int | None
    stack: str
    """The stack of the main thread, innermost call last."""


def coordinates(layout: ParallelLayout, rank: int) -> str:
    """A rank's place in the layout, for messages."""
    tp, dp, stage = layout.coordinates(rank)
    return f"stage {stage} of {layout.pp}, tp {tp}, dp {dp}"

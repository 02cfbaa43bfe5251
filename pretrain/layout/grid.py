"""Degrees to ranks: which process does what, in integers alone."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelLayout:
    """How `world_size` ranks are cut into tensor-, data- and pipeline-parallel groups.

    Tensor-parallel peers are neighbours, then data-parallel ones, then pipeline stages: Megatron's order, which
    keeps the most frequent traffic on one node.
    """

    world_size: int
    tp: int = 1
    pp: int = 1

    @property
    def dp(self) -> int:
        """Data-parallel size: what the other degrees leave of the world."""
        return self.world_size // (self.tp * self.pp)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(tp, dp, pp) ranks of a global rank."""
        return rank % self.tp, rank // self.tp % self.dp, rank // (self.tp * self.dp)


def world_from_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun or Slurm's launcher set them; (0, 1, 0) alone."""
    return tuple(int(os.environ.get(name, default)) for name, default in _WORLD)  # type: ignore[return-value]


_WORLD = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))

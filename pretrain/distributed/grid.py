"""Maps parallel degrees to process groups: which ranks are in which group. Pure arithmetic, without torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data_pipeline.config_text import Typed
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.model import ModelConfig
from pretrain.config.parallel import ParallelConfig

GroupKind = Literal["tensor", "data", "pipeline", "model", "embedding"]


@dataclass(frozen=True)
class ParallelLayout:
    """How `world_size` ranks are cut into tensor-, data- and pipeline-parallel groups.

    Tensor-parallel peers are neighbours, then data-parallel ones, then pipeline stages: Megatron's order, which
    keeps the most frequent traffic on one node.
    """

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    """Neighbours among the data-parallel ranks that share their samples: each has a part of every one."""
    ep: int = 1
    etp: int | None = None
    """None: the model has no experts."""

    @classmethod
    def of(cls, model: ModelConfig, parallel: ParallelConfig, world_size: int) -> "ParallelLayout":
        experts = (parallel.ep, parallel.etp) if model.experts.count else ()
        return cls(world_size, parallel.tp, parallel.pp, parallel.cp, *experts)

    @property
    def dp(self) -> int:
        """Number of ranks that ZeRO divides a stage over: what tensor and pipeline parallelism leave of the world."""
        return self.world_size // (self.tp * self.pp)

    @property
    def replicas(self) -> int:
        """Data-parallel size: number of those ranks that have samples of their own."""
        return self.dp // self.cp

    @property
    def edp(self) -> int:
        """How many times the ranks of a stage hold its experts."""
        return self.tp * self.dp // (self.ep * (self.etp or self.tp))

    @property
    def has_experts_apart(self) -> bool:
        """Whether ranks hold the same experts that do not hold the same other parameters, or the reverse."""
        return self.etp is not None and self.ep * self.etp != self.tp

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(tp, dp, pp) ranks of a global rank."""
        return rank % self.tp, rank // self.tp % self.dp, rank // (self.tp * self.dp)

    def rank_at(self, tp_rank: int, dp_rank: int, pp_rank: int) -> int:
        """The global rank at these coordinates."""
        return tp_rank + self.tp * (dp_rank + self.dp * pp_rank)

    def group_ranks(self, kind: GroupKind) -> list[list[int]]:
        """The ranks of every group of a kind, ascending in each.

        model: the ranks that hold one copy of the model (tensor times pipeline). embedding: the first and the last
        stage, which share a tied embedding; one rank where there is one stage. All kinds but the last take in every
        rank; with more than two stages the middle ones have no embedding group.
        """
        apart = _APART[kind]
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            place = self.coordinates(rank)
            if kind != "embedding" or place[2] in (0, self.pp - 1):
                groups.setdefault(apart(*place), []).append(rank)
        return list(groups.values())


# The coordinates that differ between the groups of a kind, from those of a rank (tp, dp, pp).
_APART: dict[GroupKind, Callable[[int, int, int], tuple[int, ...]]] = {
    "tensor": lambda tp, dp, pp: (dp, pp),
    "data": lambda tp, dp, pp: (tp, pp),
    "pipeline": lambda tp, dp, pp: (tp, dp),
    "model": lambda tp, dp, pp: (dp,),
    "embedding": lambda tp, dp, pp: (tp, dp),
}


def world_from_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun or Slurm's launcher set them; (0, 1, 0) alone.

    Raises ConfigError if they are not valid numbers.
    """
    found = {name: os.environ.get(name, default) for name, default in _WORLD}
    if wrong := [
        Problem(name, Typed(text), "must be a whole number", "unset it")
        for name, text in found.items()
        if not text.isdecimal()
    ]:
        raise ConfigError(wrong)
    rank, world_size, local_rank = map(int, found.values())
    if not rank < world_size:
        rule = f"must be less than WORLD_SIZE={world_size}"
        raise ConfigError([Problem("RANK", rank, rule, "start ranks with torchrun or Slurm, or unset both")])
    return rank, world_size, local_rank


_WORLD = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))

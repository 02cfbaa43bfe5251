"""What a run of thousands of ranks asks of each of them, with process groups of that size that send nothing."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain.layout.grid import ParallelLayout
from pretrain.layout.groups import build_groups
from pretrain.layout.runtime import Runtime
from tests.support.ranks import run_ranks


def be_one_of(world_size: int, rank: int = 0) -> None:
    """In place of the groups of this process: those of one rank of many, whose collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def groups_made(here: Runtime, layout: ParallelLayout, device: str) -> Counter[str]:
    """How many groups of each backend all ranks make together; "": the backend of the device."""
    be_one_of(layout.world_size)
    made: Counter[str] = Counter()
    new_group = dist.new_group

    def counted(*args: Any, **kwargs: Any) -> Any:
        made[kwargs.get("backend") or ""] += 1
        return new_group(*args, **{**kwargs, "backend": "fake"})

    dist.new_group = counted
    build_groups(layout, 1, 10, torch.device(device))
    return made


# For checkpoints; and for control messages, which on the CPU have the default group.
@pytest.mark.parametrize(("device", "on_the_host"), [("cpu", 1), ("cuda", 2)])
def test_groups_on_the_host_are_those_that_are_used(device: str, on_the_host: int) -> None:
    (made,) = run_ranks(groups_made, 1, ParallelLayout(2240, tp=8, pp=35), device)
    assert made["gloo"] == on_the_host
    # Megatron's other groups are made by their members alone: for the others each costs a call that returns at once.
    assert set(made) == {"", "gloo"}

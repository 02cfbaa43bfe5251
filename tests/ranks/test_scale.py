"""The cost per rank of a run with thousands of ranks, tested with process groups that send nothing."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.groups import build_groups
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import start


def be_one_of(world_size: int, rank: int = 0) -> None:
    """Replaces this process's groups by those of one rank of many, whose collectives return immediately."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def groups_made(here: Runtime, layout: ParallelLayout, device: str) -> Counter[str]:
    """How many groups of each backend all ranks create together; "": the device's backend."""
    be_one_of(layout.world_size)
    made: Counter[str] = Counter()
    new_group = dist.new_group

    def counted(*args: Any, **kwargs: Any) -> Any:
        made[kwargs.get("backend") or ""] += 1
        assert kwargs["timeout"] == timedelta(minutes=10), "torch would wait as long as it likes"
        return new_group(*args, **{**kwargs, "backend": "fake"})

    dist.new_group = counted
    build_groups(layout, 1, 10, torch.device(device))
    return made


# For checkpoints; and for control messages, which on the CPU have the default group.
@pytest.mark.parametrize(("device", "on_the_host"), [("cpu", 1), ("cuda", 2)])
def test_groups_on_the_host_are_those_that_are_used(device: str, on_the_host: int) -> None:
    (made,) = run_ranks(groups_made, 1, ParallelLayout(2240, tp=8, pp=35), device)
    assert made["gloo"] == on_the_host
    # Only the members create Megatron's other groups. For other ranks each is a call that returns immediately.
    assert set(made) == {"", "gloo"}


class Received(TorchDispatchMode):
    """Counts the bytes of all tensors that take part in collectives."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


def received(here: Runtime, config: RunConfig, folder: Path, worlds: list[int]) -> list[tuple[int, int]]:
    """Bytes that rank 0 receives while it checks and writes a checkpoint, in worlds of these sizes."""
    engine, found = start(here, config), []
    CheckpointStore(folder, groups=engine.groups, keep_last=1).save(engine, RunState(step=1), {})
    for world_size in worlds:
        be_one_of(world_size)
        world = dist.group.WORLD
        assert world is not None
        store = CheckpointStore(folder, groups=replace(engine.groups, control=world), keep_last=2)
        with Received() as checking:
            assert store.names() == ["step-00000001"]
            store.checked("step-00000001")
        store.sharing = 1  # the others write nothing
        with Received() as writing:
            store.write(store.snapshot(engine, RunState(step=1), {}), world)
        found.append((checking.bytes, writing.bytes))
    return found


def test_checkpoint_traffic_of_a_rank_ignores_world_size(tmp_path: Path) -> None:
    ((few, many),) = run_ranks(received, 1, run_config(), tmp_path, [2, 4096])
    assert few == many
    assert max(many) < 10_000

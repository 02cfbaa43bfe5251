"""The support for multi-rank tests keeps its own promises."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.distributed.runtime import Runtime
from tests.support.ranks import RanksFailed, run_ranks


def sum_of_ranks(here: Runtime, offset: int) -> tuple[int, int, int]:
    total = torch.tensor(here.rank + offset)
    dist.all_reduce(total)
    return here.rank, int(total), os.getpid()


def fail_on(here: Runtime, rank: int) -> None:
    if here.rank == rank:
        raise ValueError(f"planted on {rank}")
    dist.barrier()


def die_on(here: Runtime, rank: int) -> None:
    if here.rank == rank:
        print("last words", flush=True)
        os._exit(7)
    dist.barrier()


def sleep(_: Runtime, pids: str) -> None:
    (Path(pids) / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_rank_returns_its_own_value(world_size: int) -> None:
    results = run_ranks(sum_of_ranks, world_size, 10)
    assert [rank for rank, _, _ in results] == list(range(world_size))
    assert {total for _, total, _ in results} == {sum(range(world_size)) + 10 * world_size}
    assert len({pid for _, _, pid in results} - {os.getpid()}) == world_size


def test_the_process_of_the_tests_joins_no_group() -> None:
    run_ranks(sum_of_ranks, 1, 0)
    assert not dist.is_initialized()
    assert "RANK" not in os.environ


def test_a_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(fail_on, 3, 1)
    first = str(caught.value).split("--- rank ")[1]
    assert first.startswith("1: Traceback") and "ValueError: planted on 1" in first


def test_a_rank_that_dies_is_named_with_what_it_printed() -> None:
    with pytest.raises(RanksFailed, match=r"(?s)rank 0: ended without a result, exit status 7.*last words"):
        run_ranks(die_on, 2, 0)


def test_ranks_that_take_too_long_are_killed(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RanksFailed, match=r"(?s)rank 0: not done in 5 s.*rank 1: not done in 5 s"):
        run_ranks(sleep, 2, str(tmp_path), timeout=5.0)
    assert time.monotonic() - started < 100
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    # Reaped, not only killed: a zombie would still have its entry.
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

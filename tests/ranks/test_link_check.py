"""The check of the links between nodes before a model is built; each rank here is a node."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.distributed import link_check
from pretrain.distributed.link_check import LinkBroken, Pair, check_links, rounds_of, slow_ranks
from pretrain.distributed.runtime import Runtime
from tests.support.ranks import run_ranks


def checked(here: Runtime, folder: Path, culprit: int | None) -> str:
    os.environ |= {"GROUP_RANK": str(here.rank), "NODE_NAME": f"node{here.rank}"}
    os.environ.pop("SLURMD_NODENAME", None)
    real = link_check._numbers

    def damaged(rank: int, numel: int, device: torch.device) -> torch.Tensor:
        numbers = real(rank, numel, device)
        if rank == culprit == here.rank:
            numbers[numel // 2] += 1
        return numbers

    link_check._numbers = damaged
    assert dist.group.WORLD is not None
    try:
        check_links(True, dataclasses.replace(here, local_size=1, local_rank=0), dist.group.WORLD, folder)
    except LinkBroken as error:
        return str(error)
    return ""


def test_good_links_are_measured_and_recorded(tmp_path: Path) -> None:
    assert run_ranks(checked, 3, tmp_path, None) == [""] * 3
    found = json.loads((tmp_path / "link.json").read_text())
    assert found["nodes"] == ["node0", "node1", "node2"]
    assert [pair["ranks"] for pair in found["pairs"]] == [[0, 1], [1, 2], [2, 0]]
    assert found["bus_bytes_per_second"] > 0 and found["latency_seconds"] > 0
    assert all(pair["seconds"] > 0 for pair in found["pairs"])


def test_a_rank_whose_data_comes_out_wrong_is_named_on_all_ranks(tmp_path: Path) -> None:
    reported = run_ranks(checked, 3, tmp_path, 1)
    assert len(set(reported)) == 1
    assert "rank 1 (node node1)" in reported[0] and "rank 0" not in reported[0] and "rank 2" not in reported[0]
    assert not (tmp_path / "link.json").exists()


@pytest.mark.parametrize("num_nodes", range(1, 10))
@pytest.mark.parametrize("per_node", [1, 2])
@pytest.mark.parametrize("cyclic", [False, True])
def test_every_rank_tests_both_links_in_separate_rounds(num_nodes: int, per_node: int, cyclic: bool) -> None:
    size = num_nodes * per_node
    places = [(r % num_nodes, r // num_nodes) if cyclic else divmod(r, per_node) for r in range(size)]
    rounds = list(rounds_of(places))
    for pairs in rounds:
        assert max(Counter(rank for pair in pairs for rank in pair).values()) == 1
    met = Counter(rank for pairs in rounds for pair in pairs for rank in pair)
    assert met == {rank: min(num_nodes - 1, 2) for rank in range(size) if num_nodes > 1}
    assert len(rounds) <= 3
    assert all(places[a][0] != places[b][0] and places[a][1] == places[b][1] for p in rounds for a, b in p)


def test_a_slow_rank_is_distinguished_from_a_slow_link() -> None:
    ring = [Pair((rank, (rank + 1) % 6), 1.0) for rank in range(6)]
    assert slow_ranks(ring) == []
    slow_rank = [dataclasses.replace(pair, seconds=5.0) if 2 in pair.ranks else pair for pair in ring]
    assert slow_ranks(slow_rank) == [[2]]
    slow_link = [dataclasses.replace(pair, seconds=5.0) if pair.ranks == (2, 3) else pair for pair in ring]
    assert slow_ranks(slow_link) == [[2, 3]]

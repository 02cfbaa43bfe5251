"""The check of the links between nodes before the model is built: whether sums are right, and how fast they are.

All ranks add up numbers that each can compute for all; then each node exchanges with the next one, rank by rank, all
pairs of a round at once. A wrong sum ends the run; a slow pair is logged.
"""

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.storage.atomic_write import write_durably
from pretrain.distributed.runtime import Runtime

LINK_FILE = "link.json"
SMALL_BYTES, SMALL_ROUNDS = 1024, 10
BULK_BYTES_ON_GPU, BULK_BYTES = 64 * 2**20, 4 * 2**20
BULK_ROUNDS = 2
SLOW_FACTOR = 3.0
"""A pair that takes this many times the median is logged."""
NAME_BYTES = 64
PERIOD = 251
"""Numbers repeat after this many places; a prime, so that no power of two hides a shift."""

log = logging.getLogger(__name__)


class LinkBroken(Exception):
    """Data arrived damaged over the network; the text names the ranks."""


@dataclass(frozen=True)
class Pair:
    """Two ranks of neighbouring nodes that exchanged data."""

    ranks: tuple[int, int]
    seconds: float


@dataclass(frozen=True)
class Links:
    """The measurements."""

    nodes: list[str]
    ranks: int
    backend: str
    latency_seconds: float
    """The time of an all-reduce of 1 KB over all ranks."""
    bulk_bytes: int
    bus_bytes_per_second: float
    """The speed of an all-reduce of `bulk_bytes`, times 2(n-1)/n: the traffic of each rank's link."""
    pairs: list[Pair]
    slow: list[str]


def check_links(wanted: bool, here: Runtime, control: dist.ProcessGroup, run_dir: Path) -> None:
    """Measure if a run has several nodes; raises LinkBroken, on all ranks, if data arrives damaged."""
    if not wanted or here.local_size >= here.world_size:
        return
    table = _gather([_node_number(here), here.local_rank], control).long()
    places = [(int(node), int(local)) for node, local in table.tolist()]
    name = os.environ.get("SLURMD_NODENAME") or os.environ.get("NODE_NAME") or os.uname().nodename
    names = _gather_names(name, control)
    numel = (BULK_BYTES_ON_GPU if here.device.type == "cuda" else BULK_BYTES) // 4
    numbers = _numbers(here.rank, numel, here.device)
    small = torch.ones(SMALL_BYTES // 4, device=here.device)
    dist.all_reduce(small)  # connects
    latency = statistics.median(_timed(partial(dist.all_reduce, small), here) for _ in range(SMALL_ROUNDS))
    bulk, is_right = float("inf"), True
    for _ in range(BULK_ROUNDS):
        summed = numbers.clone()
        bulk = min(bulk, _timed(partial(dist.all_reduce, summed), here))
        is_right = is_right and torch.equal(summed, _sum_of_numbers(here.world_size, numel, here.device))
    measures = [float(not is_right)]
    rounds = list(rounds_of(places))
    for pairs in rounds:
        measures += _exchange(numbers, partner_in(pairs, here.rank), here)
    found = _gather(measures, control).tolist()
    wrong = wrong_ranks(found, rounds)
    if wrong:
        raise LinkBroken(f"data between nodes arrives damaged: {_named(wrong, names)}; leave those nodes out")
    measured = [Pair(pair, found[pair[0]][2 * number + 2]) for number, pairs in enumerate(rounds) for pair in pairs]
    links = Links(
        nodes=list(dict.fromkeys(names)),
        ranks=here.world_size,
        backend=dist.get_backend(),
        latency_seconds=float(latency),
        bulk_bytes=4 * numel,
        bus_bytes_per_second=2 * (here.world_size - 1) / here.world_size * 4 * numel / bulk,
        pairs=measured,
        slow=[_named(ranks, names) for ranks in slow_ranks(measured)],
    )
    if here.is_main:
        _report(links, len({node for node, _ in places}), run_dir)


def rounds_of(places: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Pairs of ranks with the same place on neighbouring nodes, the last one's neighbour being the first, in rounds in
    which no rank comes twice; `places` are (node, place on it) of each rank."""
    rank_at = {place: rank for rank, place in enumerate(places)}
    nodes = sorted({node for node, _ in places})
    count = len(nodes)
    edges = range(count if count > 2 else count - 1)
    # Along the ring evens and odds take turns; the edge that closes an odd ring comes alone.
    last = [count - 1] if count % 2 and count > 2 else []
    for chosen in ([e for e in edges if e % 2 == 0 and e not in last], [e for e in edges if e % 2], last):
        pairs = []
        for edge in chosen:
            one, other = nodes[edge], nodes[(edge + 1) % count]
            for (node, local), rank in rank_at.items():
                if node == one and (other, local) in rank_at:
                    pairs.append((rank, rank_at[other, local]))
        if pairs:
            yield pairs


def partner_in(pairs: Sequence[tuple[int, int]], rank: int) -> int | None:
    """The rank with which a rank exchanges data in a round."""
    return next((a + b - rank for a, b in pairs if rank in (a, b)), None)


def wrong_ranks(found: Sequence[Sequence[float]], rounds: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """The ranks that others received wrong data from, or whose sums are wrong if all pairs are right.

    A row for each rank: whether its sum is wrong; then for each round whether what it received is wrong, and seconds.
    """
    senders = {
        partner
        for number, pairs in enumerate(rounds)
        for a, b in pairs
        for receiver, partner in ((a, b), (b, a))
        if found[receiver][2 * number + 1]
    }
    return sorted(senders) or [rank for rank, row in enumerate(found) if row[0]]


def slow_ranks(pairs: Sequence[Pair]) -> list[list[int]]:
    """Ranks whose every exchange was slow, or else the two of a slow pair."""
    if len(pairs) < 3:
        return []
    limit = SLOW_FACTOR * statistics.median(pair.seconds for pair in pairs)
    slow = [pair.ranks for pair in pairs if pair.seconds > limit]
    fast = {rank for pair in pairs if pair.seconds <= limit for rank in pair.ranks}
    named = [[rank for rank in ranks if rank not in fast] or list(ranks) for ranks in slow]
    return [ranks for number, ranks in enumerate(named) if ranks not in named[:number]]


def _exchange(numbers: torch.Tensor, partner: int | None, here: Runtime) -> list[float]:
    """(whether the received data is wrong, seconds) of one round; zeros without a partner."""
    if partner is None:
        return [0.0, 0.0]
    received = torch.empty_like(numbers)
    seconds = float("inf")
    for _ in range(BULK_ROUNDS):  # the first one also connects
        seconds = min(seconds, _timed(partial(_swap, numbers, received, partner), here))
    expected = _numbers(partner, numbers.numel(), here.device)
    return [float(not torch.equal(received, expected)), seconds]


def _swap(sent: torch.Tensor, received: torch.Tensor, partner: int) -> None:
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
    ):
        work.wait()


def _numbers(rank: int, numel: int, device: torch.device) -> torch.Tensor:
    """The numbers of a rank: small whole numbers, whose sums are exact in any order."""
    return ((torch.arange(numel, device=device) * 7 + rank * 13) % PERIOD).float()


def _sum_of_numbers(world_size: int, numel: int, device: torch.device) -> torch.Tensor:
    places = torch.arange(PERIOD, device=device)
    of_period = torch.zeros(PERIOD, device=device)
    for rank in range(world_size):
        of_period += ((places * 7 + rank * 13) % PERIOD).float()
    return of_period.repeat(-(-numel // PERIOD))[:numel]


def _timed(action: Callable[[], object], here: Runtime) -> float:
    began = time.perf_counter()
    action()
    if here.device.type == "cuda":
        torch.cuda.synchronize(here.device)
    return time.perf_counter() - began


def _gather(row: Sequence[float], control: dist.ProcessGroup) -> torch.Tensor:
    """[ranks, values]: the rows of all ranks."""
    mine = torch.tensor(row, dtype=torch.float64)
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, mine, group=control)
    return torch.stack(rows)


def _gather_names(name: str, control: dist.ProcessGroup) -> list[str]:
    content = name.encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
    table = _gather(list(content), control)
    return [bytes(int(value) for value in row).rstrip(b"\0").decode(errors="replace") for row in table.tolist()]


def _node_number(here: Runtime) -> int:
    """The node's number by torchrun, launch.ssh.hosts or Slurm; without them ranks fill one node after the other."""
    for variable in ("GROUP_RANK", "SLURM_NODEID"):
        if variable in os.environ:
            return int(os.environ[variable])
    return here.rank // here.local_size


def _named(ranks: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(f"rank {rank} (node {names[rank]})" for rank in ranks)


def _report(links: Links, num_nodes: int, run_dir: Path) -> None:
    log.info(
        "links of %d nodes, %d ranks: sums right; all-reduce of 1 KB in %.2f ms, of %d MiB at %.2f GB/s",
        num_nodes,
        links.ranks,
        1e3 * links.latency_seconds,
        links.bulk_bytes // 2**20,
        links.bus_bytes_per_second / 1e9,
    )
    for slow in links.slow:
        log.warning("links: exchange with the next node takes over %g times the median: %s", SLOW_FACTOR, slow)
    write_durably(run_dir / LINK_FILE, json.dumps(asdict(links), indent=2).encode() + b"\n")

"""Collectives among ranks by number of ranks, and how far ranks of one machine slow each other down."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pretrain.bench.ceilings import synchronize
from pretrain.bench.record.timer import Timer
from pretrain.distributed.runtime import Runtime
from pretrain.planner.time.cpu_costs import Collective, CollectiveKind

SMALL_BYTES = 1024
LARGE_BYTES_ON_CPU, LARGE_BYTES_ON_GPU = 4 * 2**20, 256 * 2**20
ROUNDS = 40
KINDS: tuple[CollectiveKind, ...] = ("all_reduce", "all_gather", "reduce_scatter", "send")
CROWDED_SECONDS = 0.5


@dataclass(frozen=True)
class NamedGroup:
    """Ranks that communicate with each other."""

    ranks: tuple[int, ...]
    group: dist.ProcessGroup

    @property
    def size(self) -> int:
        return len(self.ranks)


def sizes_up_to(number: int) -> list[int]:
    """2, 4, 8 ..., and the number itself."""
    sizes = [2**power for power in range(1, number.bit_length()) if 2**power <= number]
    return sizes if number < 2 or number in sizes else [*sizes, number]


def groups_in_node(here: Runtime) -> list[NamedGroup]:
    """The first ranks of the first node, in groups of every size; all ranks call it."""
    return [_group(range(size)) for size in sizes_up_to(here.local_size)]


def groups_between_nodes(here: Runtime) -> list[NamedGroup]:
    """The first rank of each node, and all ranks; empty on one node. Ranks fill one node after the other."""
    if here.local_size >= here.world_size:
        return []
    return [_group(range(0, here.world_size, here.local_size)), _group(range(here.world_size))]


def measure_links(named: NamedGroup, here: Runtime) -> list[Collective]:
    """The collectives of a group while the other ranks wait; all ranks call it, and those outside find nothing."""
    found = [_measure(kind, named, here) for kind in KINDS] if here.rank in named.ranks else []
    dist.barrier()
    return found


def measure_crowding(here: Runtime) -> dict[str, float]:
    """How many times longer a rank of this node takes while 1, 2, 4 ... ranks compute; all ranks call it.

    On a CPU with one thread for each rank the time of that thread is measured, which grows as ranks share caches and
    memory; that they take turns on the cores is counted. Other programs on the machine then matter little.
    """
    timer = Timer(here.device, torch.get_num_threads())
    cores, alone, found = len(os.sched_getaffinity(0)), 0.0, {}
    for number in [1, *sizes_up_to(here.local_size)]:
        dist.barrier()
        own = torch.tensor(_work_seconds(timer) if here.rank < number else 0.0, dtype=torch.float64, device=here.device)
        dist.all_reduce(own, op=dist.ReduceOp.MAX)
        alone = float(own) if number == 1 else alone
        turns = max(1.0, number / cores) if timer.counts_thread else 1.0
        found[str(number)] = turns * max(1.0, float(own) / alone)
    return found


def _group(ranks: range) -> NamedGroup:
    group = dist.new_group(list(ranks))
    assert group is not None
    return NamedGroup(tuple(ranks), group)


def _measure(kind: CollectiveKind, named: NamedGroup, here: Runtime) -> Collective:
    large = LARGE_BYTES_ON_GPU if here.device.type == "cuda" else LARGE_BYTES_ON_CPU
    small, bulk = (_seconds(_action(kind, size, named, here), named, here) for size in (SMALL_BYTES, large))
    return Collective(kind, named.size, 1e6 * small, 1e-9 * large / max(bulk - small, 1e-9))


def _action(kind: CollectiveKind, num_bytes: int, named: NamedGroup, here: Runtime) -> Callable[[], object]:
    """The collective of a tensor of `num_bytes` when it is whole."""
    part = max(num_bytes // 4 // named.size, 1)
    whole = torch.ones(part * named.size, device=here.device)
    own = torch.ones(part, device=here.device)
    group = named.group
    if kind == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if kind == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, own, group=group)
    if kind == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(own, whole, group=group)
    first, second = named.ranks[:2]
    if here.rank == first:
        return lambda: dist.send(whole, second, group=group)
    return (lambda: dist.recv(whole, first, group=group)) if here.rank == second else lambda: None


def _seconds(action: Callable[[], object], named: NamedGroup, here: Runtime) -> float:
    """The lower quartile of the time of one call, on the slowest rank; the first calls connect."""
    for _ in range(2):
        action()
    times = []
    for _ in range(ROUNDS):
        dist.barrier(group=named.group)
        synchronize(here.device)
        began = time.perf_counter()
        action()
        synchronize(here.device)
        times.append(time.perf_counter() - began)
    slowest = torch.tensor(statistics.quantiles(times)[0], dtype=torch.float64, device=here.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=named.group)
    return float(slowest)


def _work_seconds(timer: Timer) -> float:
    """Seconds of some products and sums, as a layer has them, on average over half a second."""
    left, right = torch.randn(512, 256, device=timer.device), torch.randn(256, 512, device=timer.device)
    large = torch.ones(2**20, device=timer.device)
    until, began, rounds = time.perf_counter() + CROWDED_SECONDS, timer.now(), 0
    while rounds < 3 or time.perf_counter() < until:
        for _ in range(8):
            torch.mm(left, right)
        large + large
        rounds += 1
    return (timer.now() - began) / rounds

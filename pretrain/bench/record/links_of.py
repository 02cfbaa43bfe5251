"""Measured collectives as the links of a machine."""

import dataclasses
from collections.abc import Mapping, Sequence

from pretrain.planner.time.cpu_costs import Collective, CollectiveKind
from pretrain.planner.time.hardware import Hardware, Link, Quantity


def with_links(
    record: Hardware,
    inside: Sequence[Sequence[Collective]],
    between: Sequence[Sequence[Collective]],
    crowding: Mapping[str, float],
    source: str,
) -> Hardware:
    """The record with links in the node, from groups of growing size, and between nodes, from one rank of each node and
    from all ranks."""
    if inside:
        record = dataclasses.replace(record, in_node=_link(record.in_node, inside, source))
    if between:
        link = _link(record.between_nodes, between[:1], source)
        cards = max(1.0, ring_gbps(between[-1]) / link.gbps.value)  # rings that together are so many times as fast
        used = Quantity(min(round(cards), record.nics_per_node.value), "measured", source)
        record = dataclasses.replace(record, between_nodes=link, nics_per_ring=used)
    if record.cpu is None:
        return record
    collectives = tuple(each for group in inside for each in group)
    return dataclasses.replace(
        record, cpu=dataclasses.replace(record.cpu, collectives=collectives, crowding=dict(crowding))
    )


def ring_gbps(group: Sequence[Collective]) -> float:
    """GB/s of each connection in a ring: an all-reduce sends 2 (n - 1) / n of the tensor over each."""
    found = _of(group, "all_reduce")
    return found.gbps * 2 * (found.ranks - 1) / found.ranks


def _link(before: Link, groups: Sequence[Sequence[Collective]], source: str) -> Link:
    """Latencies are those of an all-gather, of which an all-reduce has two."""
    smallest, largest = _of(groups[0], "all_gather"), _of(groups[-1], "all_gather")
    hop = before.hop_us
    if largest.ranks > smallest.ranks:
        more = (largest.latency_us - smallest.latency_us) / (largest.ranks - smallest.ranks)
        hop = Quantity(max(more, 0.0), "measured", source)
    latency = smallest.latency_us - (smallest.ranks - 2) * hop.value
    return Link(
        Quantity(max(latency, 0.0), "measured", source), hop, Quantity(ring_gbps(groups[-1]), "measured", source)
    )


def _of(group: Sequence[Collective], kind: CollectiveKind) -> Collective:
    return next(each for each in group if each.kind == kind)

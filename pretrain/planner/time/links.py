"""The time of collectives and sends, from the links between the ranks of a group."""

from dataclasses import dataclass

from pretrain.planner.time.hardware import Hardware


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: `ranks` in all, `local` of them on each node."""

    ranks: int
    local: int

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.local)


def tensor_group(tp: int, devices_per_node: int) -> Group:
    """Neighbouring ranks."""
    return Group(tp, min(tp, devices_per_node))


def data_group(tp: int, dp: int, devices_per_node: int) -> Group:
    """Every tp-th rank."""
    return Group(dp, max(1, min(dp, devices_per_node // tp)))


@dataclass(frozen=True)
class Links:
    """The connections of one machine, or of several equal ones."""

    hardware: Hardware
    devices_per_node: int
    nics_per_ring: float | None = None
    """Network cards that one collective uses. None: as the hardware's record says."""
    share: float = 1.0
    """Part of the links in a node that one rank has: on a CPU all ranks share its memory."""

    def bandwidth(self, group: Group) -> float:
        """Bytes per second of each rank in a ring through the group."""
        hardware = self.hardware
        within = hardware.in_node.gbps.value * self.share
        if group.nodes == 1:
            return within * 1e9
        cards = group.local * hardware.nics_per_node.value / self.devices_per_node
        if group.local > 1:
            cards = min(cards, self.nics_per_ring or hardware.nics_per_ring.value)
        return min(within, cards * hardware.between_nodes.gbps.value) * 1e9

    def latency(self, group: Group) -> float:
        """Seconds of one round through the group that sends almost nothing."""
        hardware = self.hardware
        within = group.ranks - group.nodes
        if group.nodes == 1:
            link = hardware.in_node
            return (link.latency_us.value + (within - 1) * link.hop_us.value) * 1e-6
        link = hardware.between_nodes
        hops = (group.nodes - 1) * link.hop_us.value + within * hardware.in_node.hop_us.value
        return (link.latency_us.value + hops) * 1e-6

    def gather(self, num_bytes: float, group: Group) -> float:
        """Seconds of an all-gather, or a reduce-scatter, of a tensor that has `num_bytes` when it is whole."""
        if group.ranks == 1:
            return 0.0
        share = (group.ranks - 1) / group.ranks
        return num_bytes * share / self.bandwidth(group) + self.latency(group)

    def all_reduce(self, num_bytes: float, group: Group) -> float:
        """A reduce-scatter and an all-gather (Patarasuk and Yuan 2009)."""
        return 2 * self.gather(num_bytes, group)

    def send(self, num_bytes: float, world_size: int) -> float:
        """Seconds from a rank to the one of the next pipeline stage, while its neighbours send too.

        Stages are the outermost dimension: if there are several nodes, some of them are on different ones.
        """
        hardware = self.hardware
        if world_size <= self.devices_per_node:
            link, rate = hardware.in_node, hardware.in_node.gbps.value * self.share
        else:
            link = hardware.between_nodes
            cards = min(1.0, hardware.nics_per_node.value / self.devices_per_node)
            rate = min(hardware.in_node.gbps.value, cards * link.gbps.value)
        return num_bytes / (rate * 1e9) + link.latency_us.value * 1e-6

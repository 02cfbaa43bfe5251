"""Checks of the reports of all nodes: mistakes that other nodes would not fix, and nodes that are bad."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.nodes.facts import GIB, NodeReport

SKEW_SECONDS = 5.0
"""The largest accepted clock difference. Beyond it, logs, certificates and file times are unreliable."""
TEMPORARY_GIB = 0.25
SHARED_MEMORY_GIB = 0.0625
"""A container's usual 64 MiB; the ranks of a node exchange data through it."""


@dataclass(frozen=True)
class Requirements:
    """The resources that a node must have."""

    memory_gb: float
    disk_gb: float


@dataclass(frozen=True)
class ReceivedReport:
    """A report that node 0 received, with its earliest and latest possible time by the clock of node 0."""

    node: NodeReport
    not_before: float
    not_after: float

    @property
    def skew(self) -> float:
        """Seconds by which the node's clock is at least ahead of node 0's; 0 if the report shows no difference."""
        return min(self.node.time - self.not_before, 0.0) or max(self.node.time - self.not_after, 0.0)


@dataclass(frozen=True)
class PreflightResult:
    """The result of the checks."""

    mistakes: list[str]
    refusals: list[str]
    """Faults of the shared file system, which may be over later."""
    bad_nodes: dict[str, list[str]]
    """Name -> the faults of this node, with what to do."""


def check_nodes(
    seen: Sequence[ReceivedReport], requirements: Requirements, *, missing: Sequence[str], seconds: float, shared: bool
) -> PreflightResult:
    """Check the reports; `missing` are the nodes that did not report within `seconds`.

    `shared`: whether the run folder is known to be on a file system of several machines.
    """
    bad: dict[str, list[str]] = {}
    mistakes, refusals = list(_differing_versions([each.node for each in seen])), []
    for each in seen:
        faults = [*each.node.gpu_faults, *_short_of(each.node, requirements)]
        if faults:
            bad[each.node.name] = faults
    for name, skew in _skewed(seen).items():
        way = "ahead of" if skew > 0 else "behind"
        bad.setdefault(name, []).append(
            f"its clock is at least {abs(skew):.0f} s {way} the others' (hint: set it, and look at its NTP service)"
        )
    least = min(seen, key=lambda each: each.node.free_disk).node
    if least.free_disk < requirements.disk_gb * GIB:
        refusals.append(
            f"run folder: {least.free_disk / GIB:.1f} GiB are free, {requirements.disk_gb:g} are asked for "
            "by --min-disk-gb (hint: make room or choose another run.dir)"
        )
    if missing and len(seen) == 1 and not shared:
        mistakes.append(
            f"run folder: none of the {len(missing)} other nodes found it within {seconds:g} s, and it is on a disk "
            f"of {seen[0].node.name} (hint: choose a run.dir that all nodes share)"
        )
    elif missing:
        for name in missing:
            bad[name] = [
                f"did not report within {seconds:g} s: it is stuck, or the run folder is not the same there "
                "(hint: look at its file systems and this step's output)"
            ]
    return PreflightResult(mistakes, refusals, bad)


def _short_of(node: NodeReport, requirements: Requirements) -> Iterator[str]:
    wanted = (
        (
            "memory",
            node.free_memory,
            requirements.memory_gb,
            "end what else runs there, or ask for less (--min-memory-gb)",
        ),
        ("temporary files", node.free_temporary, TEMPORARY_GIB, "clean its folder for temporary files, or set TMPDIR"),
        ("shared memory (/dev/shm)", node.free_shared_memory, SHARED_MEMORY_GIB, "remove stale files in /dev/shm"),
    )
    for what, free, gib, remedy in wanted:
        if free is not None and free < gib * GIB:
            yield f"{free / GIB:.2f} GiB are free for {what}, {gib:g} are needed (hint: {remedy})"


def _differing_versions(nodes: Sequence[NodeReport]) -> Iterator[str]:
    for what in nodes[0].versions:
        names: dict[str, list[str]] = {}
        for node in nodes:
            names.setdefault(node.versions.get(what, "unknown"), []).append(node.name)
        if len(names) > 1:
            groups = sorted(names.items(), key=lambda group: -len(group[1]))
            listed = ", ".join(f"{version} on {_few(members)}" for version, members in groups)
            yield f"{what} differs: {listed} (hint: install the same on all nodes, or use one shared environment)"


def _skewed(seen: Sequence[ReceivedReport]) -> Mapping[str, float]:
    """Node -> seconds ahead. If most nodes differ from node 0 in the same way, the clock of node 0 is wrong."""
    ahead = {each.node.name: each.skew for each in seen if abs(each.skew) > SKEW_SECONDS}
    same_way = [skew for skew in ahead.values() if (skew > 0) == (next(iter(ahead.values())) > 0)]
    if len(same_way) > 1 and 2 * len(same_way) > len(seen) - 1:
        return {seen[0].node.name: -min(same_way, key=abs)}
    return ahead


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

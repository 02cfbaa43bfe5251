"""The measurements of a dry run on one rank."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """The collectives of one kind that a rank takes part in, in one group."""

    group: str
    """tensor, data, pipeline, model, embedding, world, control, saving, or other."""
    kind: str
    ranks: int
    """Number of ranks in the group."""
    number: float
    size: float
    """Bytes of the whole tensors."""

    @property
    def received(self) -> float:
        """Bytes that a ring algorithm brings to each rank."""
        share = (self.ranks - 1) / self.ranks
        factors = {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": share, "send": 0.0}
        return self.size * factors.get(self.kind, float(self.ranks > 1))


@dataclass(frozen=True)
class Step:
    """One training step of a rank, or of one that was extrapolated to more micro-batches."""

    micro_batches: int
    seconds: float
    peak_forward_backward: int
    """Bytes on the device, until the last gradient is reduced."""
    peak_update: int
    between_steps: int
    """Bytes on the device after the step."""
    host_peak: int
    """Bytes of large tensors on the host."""
    waits: dict[str, float]
    """How often the host waits for the device, by the place in the code."""
    operations: float
    """Operations on tensors of the device, each of which costs the host time."""
    traffic: tuple[Traffic, ...]


@dataclass(frozen=True)
class Measured:
    """One rank's start-up and steps."""

    seconds: dict[str, float]
    """Duration of each phase of the start-up."""
    peak_start: int
    """Bytes on the device while the engine is built."""
    started: int
    """Bytes on the device before the first step."""
    host_started: int
    """Bytes of large tensors on the host before the first step."""
    groups: tuple[tuple[str, int], ...]
    """Process groups that this rank is a member of: name and number of ranks."""
    groups_made: int
    """The number of process groups that all ranks made together."""
    traffic_start: tuple[Traffic, ...]
    steps: tuple[Step, ...]
    elements: int
    """Parameters of the rank."""
    parameters: int
    """Bytes of parameters, as the engine counts them, wherever they are."""
    master_weights: int
    moments: int
    gradients: int
    resident: int
    """The most bytes of memory that this process itself took."""


def extrapolated(fewer: Step, more: Step, micro_batches: int) -> Step:
    """The step with `micro_batches`, extrapolated from two steps that differ in nothing else.

    Time and traffic grow linearly with the number of micro-batches. Memory is that of the longer step.
    """
    if micro_batches == more.micro_batches:
        return more
    factor = (micro_batches - fewer.micro_batches) / (more.micro_batches - fewer.micro_batches)

    def along(start: float, end: float) -> float:
        return start + factor * (end - start)

    before = {(item.group, item.kind): item for item in fewer.traffic}
    traffic = []
    for item in more.traffic:
        first = before.get((item.group, item.kind), Traffic(item.group, item.kind, item.ranks, 0, 0))
        number, size = along(first.number, item.number), along(first.size, item.size)
        traffic.append(Traffic(item.group, item.kind, item.ranks, number, size))
    return Step(
        micro_batches,
        along(fewer.seconds, more.seconds),
        more.peak_forward_backward,
        more.peak_update,
        more.between_steps,
        more.host_peak,
        {place: along(fewer.waits.get(place, 0), number) for place, number in more.waits.items()},
        along(fewer.operations, more.operations),
        tuple(traffic),
    )

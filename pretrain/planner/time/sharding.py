"""Seconds of data parallelism and ZeRO: what is gathered and reduced in the passes and once a step, and the update."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from pretrain.config.derived import padded_vocab_size
from pretrain.config.parallel import Chunk
from pretrain.planner.memory import Modes
from pretrain.planner.shapes import StageShapes, layer_size, layer_tensors
from pretrain.planner.states import gradient_bytes, parameter_bytes
from pretrain.planner.time.layer import Parts, Rank
from pretrain.planner.time.links import Group


@dataclass(frozen=True)
class DataParallel:
    """The traffic of one data-parallel group. Bytes and counts are those of pretrain/planner/costs.py."""

    rank: Rank
    modes: Modes
    group: Group
    micro_batches: int

    @property
    def zero(self) -> int:
        return self.rank.config.engine.zero_stage

    @cached_property
    def gradient_width(self) -> float:
        return self.rank.behaviour.reduced_bytes or gradient_bytes(self.rank.config.engine)

    @cached_property
    def width(self) -> int:
        return parameter_bytes(self.rank.config.engine)

    @property
    def _gathers_in_passes(self) -> bool:
        return self.zero == 3 and self.modes.param_gather == "per_micro_batch"

    @property
    def _reduces_in_passes(self) -> bool:
        return self.zero >= 2 and self.modes.grad_reduction == "per_micro_batch"

    def forward(self, chunk: Chunk, parts: Parts) -> Parts:
        """The forward pass of a chunk with its gathers."""
        return self._with_traffic(parts, self._gather(chunk) if self._gathers_in_passes else 0.0)

    def backward(self, chunk: Chunk, parts: Parts, recomputed_layers: int) -> Parts:
        """The backward pass of a chunk with its gathers and reductions."""
        traffic = 0.0
        if self._gathers_in_passes:
            traffic += self._gather(chunk)
            if self.rank.behaviour.gather == "serial":
                traffic += recomputed_layers * self._layer(self.width)  # gathered for the recomputation too
        if self._reduces_in_passes:
            traffic += chunk.num_layers * self._layer(self.gradient_width) + self._tables(chunk, self.gradient_width)
        return self._with_traffic(parts, traffic)

    def once(self, stage: StageShapes, first_forward: float, last_backward: float) -> float:
        """Seconds in a step for what happens once: the reduction of whole gradients, the gather of parameters.

        If they are overlapped, they run behind the last backward pass, and behind the first forward pass.
        """
        if self.group.ranks == 1:
            return 0.0
        links, elements, behaviour = self.rank.links, stage.num_parameters, self.rank.behaviour
        seconds = 0.0
        if not self._reduces_in_passes:
            num_bytes = self.gradient_width * elements
            alone = links.all_reduce(num_bytes, self.group) if self.zero == 0 else links.gather(num_bytes, self.group)
            seconds += self._behind(alone, last_backward) if behaviour.reduction == "overlapped" else alone
        if self.zero in (1, 2) or (self.zero == 3 and not self._gathers_in_passes):
            alone = links.gather(self.width * elements, self.group)
            seconds += self._behind(alone, first_forward) if behaviour.gather == "overlapped" else alone
        return seconds

    def optimizer_seconds(self, stage: StageShapes) -> float:
        """The update of the elements that this rank owns, on the device or, offloaded, on the host."""
        rank, owned = self.rank, stage.num_parameters / (self.group.ranks if self.zero else 1)
        quantity = rank.hardware.optimizer_gbps or rank.hardware.copy_gbps
        seconds = owned * rank.behaviour.optimizer_bytes / (quantity.value * 1e9 * rank.share)
        if rank.config.engine.offload.optimizer != "none":
            # Adam reads and writes the host's memory, then gradients and parameters cross the bus.
            crossing = self.gradient_width + self.width
            seconds += owned * (rank.behaviour.optimizer_bytes + crossing) / (rank.hardware.host_gbps.value * 1e9)
        return seconds

    def tied_seconds(self, first: StageShapes, world_size: int) -> float:
        """The sum of the gradients of a tied embedding over the two ends of the pipeline."""
        model, tp = self.rank.config.model, self.rank.tensor.ranks
        rows = padded_vocab_size(model, self.rank.vocab_size, tp) // tp
        owned = rows * model.hidden_size / (self.group.ranks if self.zero >= 2 else 1)
        return self.rank.links.send(2 * 4.0 * owned, world_size)

    def _with_traffic(self, parts: Parts, traffic: float) -> Parts:
        if self.rank.behaviour.gather == "overlapped":
            traffic = self._behind(traffic, parts.seconds)
        return dataclasses.replace(parts, data_parallel=parts.data_parallel + traffic)

    def _behind(self, traffic: float, work: float) -> float:
        """Seconds that overlapped traffic adds: what exceeds the work, and a share of what it hides behind."""
        hidden = min(traffic, work)
        return traffic - hidden + self.rank.constants.overlap_slowdown * hidden

    def _gather(self, chunk: Chunk) -> float:
        return chunk.num_layers * self._layer(self.width) + self._tables(chunk, self.width)

    def _layer(self, width: float) -> float:
        """One layer gathered or reduced, all its tensors in one call (or one for each, without overlap)."""
        model, parallel = self.rank.config.model, self.rank.config.parallel
        seconds = self.rank.links.gather(width * layer_size(model, parallel), self.group)
        if self.rank.behaviour.gather == "serial" and self.group.ranks > 1:
            seconds += (layer_tensors(model, parallel) // 2 - 1) * self.rank.links.latency(self.group)
        return seconds

    def _tables(self, chunk: Chunk, width: float) -> float:
        model, tp = self.rank.config.model, self.rank.tensor.ranks
        table = padded_vocab_size(model, self.rank.vocab_size, tp) // tp * model.hidden_size
        return (chunk.embedding + chunk.head) * self.rank.links.gather(width * table, self.group)

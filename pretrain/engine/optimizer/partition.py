"""Which elements of the parameters a data-parallel rank updates. Each ZeRO family derives its partition once.

The inner fields named here are those of deepspeed 0.19.8.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class ParameterRange:
    """Elements `first` to `last` of the flat master buffer are the elements of the flat parameter from `start` on."""

    parameter: nn.Parameter
    master: Tensor
    first: int
    last: int
    start: int

    def of(self, buffer: Tensor) -> Tensor:
        """The range of a tensor that has the shape of the master buffer, as a flat view."""
        return buffer.view(-1)[self.first : self.last]


Partition = tuple[ParameterRange, ...]


def whole_parameters(masters_and_parameters: Iterable[tuple[Tensor, nn.Parameter]]) -> Iterator[ParameterRange]:
    """ZeRO-0: whole tensors on every rank."""
    for master, parameter in masters_and_parameters:
        yield ParameterRange(parameter, master, 0, master.numel(), 0)


def equal_parts_of_groups(optimizer: Any) -> Iterator[ParameterRange]:
    """ZeRO-1 and 2: each parameter group is one flat buffer, divided into equal parts over its ranks."""
    for i, master in enumerate(optimizer.single_partition_of_fp32_groups):
        begin = optimizer.real_dp_process_group[i].rank() * master.numel()
        offsets = optimizer.round_robin_bit16_offsets[i]
        for parameter, offset in zip(optimizer.round_robin_bit16_groups[i], offsets, strict=True):
            first, last = max(begin, offset), min(begin + master.numel(), offset + parameter.numel())
            if first < last:
                yield ParameterRange(parameter, master, first - begin, last - begin, first - offset)


def equal_parts_of_parameters(optimizer: Any) -> Iterator[ParameterRange]:
    """ZeRO-3: each parameter is divided into equal parts, rounded up; one buffer holds the parts of a sub-group."""
    for i, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        position = 0
        for parameter in optimizer.fp16_groups[i]:
            size = parameter.partition_numel()
            start = parameter.ds_zero_partition_rank * size
            real = min(size, parameter.ds_numel - start)  # the last part is padded
            if real > 0:
                yield ParameterRange(parameter, master, position, position + real, start)
            position += size

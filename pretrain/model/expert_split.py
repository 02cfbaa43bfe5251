"""Which part of stacked experts a rank holds. The experts of a layer are one tensor for each of their matrices.

Shapes: E experts, e of them on this rank; f inner width, of which a rank has f / etp.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pretrain.model.rows import Rows


@dataclass(frozen=True)
class ExpertSplit:
    """The split of a tensor [E, rows, columns]: experts over `ep` ranks, and each expert's width over `etp` ranks."""

    ep: int
    ep_rank: int
    etp: int
    etp_rank: int
    dim: int
    """The dimension of the inner width: 1 in the first matrix, 2 in the second."""
    matrices: int = 1
    """2: `dim` has the rows of two matrices, the gate and the up projection, one after the other."""

    def whole(self, own: tuple[int, ...]) -> torch.Size:
        """The shape of the whole tensor, from that of this rank."""
        shape = list(own)
        shape[0] *= self.ep
        shape[self.dim] *= self.etp
        return torch.Size(shape)

    def rows(self, own: tuple[int, ...]) -> Rows:
        """The elements of this rank in the flat whole tensor."""
        experts, rows, columns = own
        if self.dim == 1:
            count, length = experts * self.matrices, rows // self.matrices * columns
        else:
            count, length = experts * rows, columns
        stride = length * self.etp
        return Rows(self.ep_rank * count * stride + self.etp_rank * length, count, length, stride)

    def boxes(self, own: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...], int]]:
        """(matrix, origin in the whole tensor of that matrix, shape, offset in the flat tensor of this rank)."""
        origin = [self.ep_rank * own[0], 0, 0]
        if self.matrices == 1:
            origin[self.dim] = self.etp_rank * own[self.dim]
            yield 0, tuple(origin), own, 0
            return
        part = (1, own[1] // self.matrices, own[2])
        for expert in range(own[0]):
            for matrix in range(self.matrices):
                place = (origin[0] + expert, self.etp_rank * part[1], 0)
                yield matrix, place, part, (expert * self.matrices + matrix) * part[1] * part[2]

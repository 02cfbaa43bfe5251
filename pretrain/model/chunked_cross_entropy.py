"""The output layer with its cross-entropy, a block of the vocabulary at a time: logits are never stored whole.

The forward pass keeps one number for each token, the logarithm of the sum of exponentials; the backward pass computes
each block of logits again, as Cut Cross-Entropy does (Wijmans et al. 2024, arXiv 2411.09009). That is one matrix
product more than the three of an output layer. Liger Kernel (Hsu et al. 2024, arXiv 2410.10989) computes the gradients
in the forward pass instead, which is not possible here: they are multiplied by the weight of each token and the loss
scale, which become known in the backward pass.

Blocks are of the vocabulary rather than of tokens: then each row of the weight's gradient is finished by one product,
and what is summed over blocks, in fp32, is the gradient of hidden states, which is the smaller of the two.
Shapes: s sequence, b batch, n = s b tokens, h hidden size, v columns of this rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.config.head_blocks import block_columns
from pretrain.model.cross_entropy import Passes, columns_of, differentiate, log_sums, over_ranks


@dataclass(frozen=True)
class Columns:
    """This rank's columns of the logits."""

    first: int
    """Token of the first column."""
    real: int
    """Number of columns that are tokens; the others are padding."""
    group: dist.ProcessGroup | None
    """The ranks that have the other columns."""
    cut_sequence: bool
    """Whether these ranks also have one part each of the sequence."""


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, columns: Columns, passes: Passes) -> Tensor:
    """Loss of each token in fp32 [s, b]: hidden [s, b, h] or this rank's part, weight [v, h], labels [s, b]."""
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, labels, columns, passes)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, columns: Columns, passes: Passes) -> Tensor:
        states, labels_of = _whole(hidden, columns), labels.flatten()
        sums = states.new_full(labels_of.shape, -torch.inf, dtype=_sums_in(states))
        targets = torch.zeros_like(sums)
        for block, logits in _blocks(states, weight, columns.real):
            sums = torch.logaddexp(sums, log_sums(logits, logits.shape[1], passes))
            index, inside = columns_of(labels_of, columns.first + block.start, logits.shape[1])
            targets += torch.where(inside, logits.gather(1, index)[:, 0], 0.0)
        if columns.group is not None:
            sums, targets = over_ranks(sums, targets, columns.group)
        ctx.save_for_backward(hidden, weight, labels_of, sums)
        ctx.columns, ctx.passes = columns, passes
        return (sums - targets).view(labels.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, sums = ctx.saved_tensors
        columns, factors = ctx.columns, gradients[0].flatten()[:, None]
        states, of_weight = _whole(hidden, columns), torch.empty_like(weight)
        of_weight[columns.real :] = 0
        # Partial sums of 16-bit numbers are not rounded to 16 bits.
        of_states = torch.zeros_like(states, dtype=_sums_in(states))
        for block, logits in _blocks(states, weight, columns.real):
            index, inside = columns_of(labels, columns.first + block.start, logits.shape[1])
            differentiate(logits, index, inside, sums, factors, logits.shape[1], ctx.passes)
            torch.mm(logits.t(), states, out=of_weight[block])
            if of_states.dtype == logits.dtype:
                of_states.addmm_(logits, weight[block])
            else:
                of_states += logits @ weight[block]
        return _own_part(of_states.to(states.dtype), hidden, columns), of_weight, None, None, None


def _blocks(states: Tensor, weight: Tensor, real: int) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of columns, and the logits of each [n, columns], all in the same memory."""
    step = block_columns(len(states), real, states.element_size())
    memory = states.new_empty(len(states) * step)
    for start in range(0, real, step):
        block = slice(start, min(start + step, real))
        rows = weight[block]
        yield block, torch.mm(states, rows.t(), out=memory[: len(states) * len(rows)].view(len(states), -1))


def _sums_in(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _whole(hidden: Tensor, columns: Columns) -> Tensor:
    """Hidden states of all tokens [n, h]."""
    rows = hidden.flatten(0, 1)
    if columns.group is None or not columns.cut_sequence:
        return rows
    whole = rows.new_empty(len(rows) * columns.group.size(), rows.shape[1])
    dist.all_gather_into_tensor(whole, rows.contiguous(), group=columns.group)
    return whole


def _own_part(of_states: Tensor, hidden: Tensor, columns: Columns) -> Tensor:
    """Sum gradients [n, h], each of one rank's columns, and give each rank that of its own hidden states."""
    if columns.group is None:
        return of_states.view(hidden.shape)
    if not columns.cut_sequence:
        dist.all_reduce(of_states, group=columns.group)
        return of_states.view(hidden.shape)
    part = torch.empty_like(hidden)
    dist.reduce_scatter_tensor(part.view(-1, part.shape[-1]), of_states, group=columns.group)
    return part

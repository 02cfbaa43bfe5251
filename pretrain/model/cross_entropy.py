"""Cross-entropy that keeps one matrix of [tokens, vocabulary]: the logits, which the backward pass turns into their
gradient where they lie.

What is done in fp32 is done for some rows at a time. The plain way (gpt.py) holds up to five such matrices.
n tokens, v columns of this rank.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**24
"""Logits that are taken to fp32 at once: 64 MiB."""


def in_place_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    first: int,
    real: int,
    group: dist.ProcessGroup | None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Loss of each token in fp32, in the shape of labels [...]; logits [..., v] are gone after the backward pass.

    This rank's columns begin at token `first`, the first `real` of them stand for tokens and the rest for nothing;
    `group`: the ranks that have the other columns. Logits that somebody else still holds stay as they are: then the
    gradient is a matrix of its own.
    """
    loss: Tensor = _InPlaceCrossEntropy.apply(logits, labels, first, real, group, chunk_elements)
    return loss


class _InPlaceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        first: int,
        real: int,
        group: dist.ProcessGroup | None,
        chunk_elements: int,
    ) -> Tensor:
        rows = logits.flatten(0, -2)
        index = labels.flatten() - first
        inside = (index >= 0) & (index < real)
        index = index.clamp(0, max(real - 1, 0))[:, None]
        sums = torch.empty(len(rows), dtype=torch.float32, device=rows.device)  # log of the sum of exponentials
        for part in _parts(len(rows), rows.shape[1], chunk_elements):
            torch.logsumexp(rows[part, :real].float(), 1, out=sums[part])
        targets = torch.where(inside, rows.gather(1, index)[:, 0].float(), 0.0)
        if group is not None:
            largest = sums.clone()
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
            both = torch.stack([(sums - largest).exp(), targets])
            dist.all_reduce(both, group=group)
            sums, targets = largest + both[0].log(), both[1]
        ctx.save_for_backward(logits, index, inside, sums)
        ctx.real, ctx.chunk_elements, ctx.overwritten, ctx.alone = real, chunk_elements, False, _holders_alone()
        return (sums - targets).view(labels.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.overwritten:
            raise RuntimeError(
                "engine.cross_entropy=in_place: a second backward pass through the same loss, whose logits the first "
                "one has overwritten; set engine.cross_entropy=plain"
            )
        logits, index, inside, sums = ctx.saved_tensors
        ctx.overwritten = _holders(logits) == ctx.alone
        of_logits = logits.detach() if ctx.overwritten else logits.detach().clone()
        rows, real, factors = of_logits.flatten(0, -2), ctx.real, gradients[0].flatten()[:, None]
        for part in _parts(len(rows), rows.shape[1], ctx.chunk_elements):
            if real:
                softmax = (rows[part, :real].float() - sums[part, None]).exp_()
                at_target = softmax.gather(1, index[part]) - inside[part, None].float()
                softmax.scatter_(1, index[part], at_target)
                rows[part, :real] = softmax.mul_(factors[part])
            rows[part, real:] = 0
        return rows.view(logits.shape), None, None, None, None, None


def _parts(count: int, columns: int, chunk_elements: int) -> Iterator[slice]:
    """Ranges of rows, each of about `chunk_elements`."""
    step = max(chunk_elements // columns, 1)
    return (slice(begin, begin + step) for begin in range(0, count, step))


def _holders(saved: Tensor) -> tuple[int, int, int]:
    """References to a tensor that a backward pass was handed: Python's, autograd's, and to its memory."""
    return sys.getrefcount(saved), saved._use_count(), torch._C._storage_Use_Count(saved.untyped_storage()._cdata)  # type: ignore[attr-defined]


class _Probe(torch.autograd.Function):
    """The references to a saved tensor that nobody else holds, which are torch's own affair."""

    alone: tuple[int, int, int]

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return tensor.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> None:
        (saved,) = ctx.saved_tensors
        _Probe.alone = _holders(saved)


@functools.cache
def _holders_alone() -> tuple[int, int, int]:
    with torch.enable_grad():
        loss = _Probe.apply(torch.ones(1, requires_grad=True) * 1)
    loss.backward()
    return _Probe.alone

"""Cross-entropy whose backward pass overwrites the logits with their gradient.

So it keeps a single matrix [tokens, vocabulary], where the plain implementation (gpt.py) holds up to five. fp32
arithmetic runs on some rows at a time, or in compiled code that stores no fp32 tensor. Shapes: n tokens, v columns of
this rank. The first `real` columns are tokens, the others are padding.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.config.head_blocks import ROWS_ELEMENTS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """The functions that read the logits [n, v]: one in the forward pass, one in the backward pass."""

    log_sums: Callable[[Tensor, int], Tensor]
    """(logits, real) -> logarithm of the sum of exponentials [n], fp32."""
    differentiate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], None]
    """(logits, index [n, 1], inside [n], log_sums [n], factors [n, 1], real): overwrites logits with their gradient."""
    elements: int
    """Number of logits per call."""


def in_place_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    first: int,
    real: int,
    group: dist.ProcessGroup | None,
    passes: Passes,
) -> Tensor:
    """Loss of each token in fp32, in the shape of labels [...]. The backward pass overwrites the logits [..., v].

    This rank's columns start at token `first`; `group`: the ranks that have the other columns. If something else still
    refers to the logits, they are not overwritten: the gradient gets memory of its own, and a warning is logged once.
    """
    loss: Tensor = _InPlaceCrossEntropy.apply(logits, labels, first, real, group, passes)
    return loss


def compiled_passes(compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Passes:
    """Compile each function to one graph for any number of rows.

    fp32 values stay in registers, so rows are only split to keep the number of logits within 32 bits.
    """
    return Passes(_for_any_rows(compiler(_log_sums)), _for_any_rows(compiler(_differentiate_in_one_pass)), 2**30)


def compiled_block_passes(compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Passes:
    """The same for any number of columns too, none of which is padding."""
    sums, gradient = compiler(_log_sums_of_block), compiler(_differentiate_block)

    def log_sums_of(rows: Tensor, _: int) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(rows, (0, 1))
        return sums(rows)

    def differentiate_rows(rows: Tensor, *given: Any) -> None:
        torch._dynamo.maybe_mark_dynamic(rows, (0, 1))
        for tensor in given[:-1]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        gradient(rows, *given[:-1])

    return Passes(log_sums_of, differentiate_rows, 2**30)


class _InPlaceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        first: int,
        real: int,
        group: dist.ProcessGroup | None,
        passes: Passes,
    ) -> Tensor:
        rows = logits.flatten(0, -2)
        index, inside = columns_of(labels.flatten(), first, real)
        sums = log_sums(rows, real, passes)
        targets = torch.where(inside, rows.gather(1, index)[:, 0].float(), 0.0)
        if group is not None:
            sums, targets = over_ranks(sums, targets, group)
        ctx.save_for_backward(logits, index, inside, sums)
        ctx.real, ctx.passes, ctx.overwritten, ctx.unshared = real, passes, False, _references_when_unshared()
        return (sums - targets).view(labels.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.overwritten:
            raise RuntimeError(
                "engine.cross_entropy=in_place: second backward pass through the same loss, but the first one has "
                "overwritten its logits; set engine.cross_entropy=plain"
            )
        logits, index, inside, sums = ctx.saved_tensors
        ctx.overwritten = _references(logits) == ctx.unshared
        if not ctx.overwritten:
            _warn_about_copy()
        of_logits = logits.detach() if ctx.overwritten else logits.detach().clone()
        rows, factors = of_logits.flatten(0, -2), gradients[0].flatten()[:, None]
        differentiate(rows, index, inside, sums, factors, ctx.real, ctx.passes)
        return rows.view(logits.shape), None, None, None, None, None


def columns_of(labels: Tensor, first: int, real: int) -> tuple[Tensor, Tensor]:
    """The column [n, 1] of each label [n] among `real` columns from token `first` on, and whether it is one [n]."""
    index = labels - first
    inside = (index >= 0) & (index < real)
    return index.clamp(0, max(real - 1, 0))[:, None], inside


def log_sums(rows: Tensor, real: int, passes: Passes) -> Tensor:
    """Logarithm of the sum of exponentials of each row [n, v], fp32 [n]."""
    sums = torch.full((len(rows),), -torch.inf, dtype=_arithmetic(rows), device=rows.device)
    for part in _parts(rows, passes.elements) if real else ():
        sums[part] = passes.log_sums(rows[part], real)
    return sums


def over_ranks(sums: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The same of all columns, from `log_sums` and the target's logit [n] (or 0) of each rank's columns."""
    largest = sums.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    both = torch.stack([(sums - largest).exp(), targets])
    dist.all_reduce(both, group=group)
    return largest + both[0].log(), both[1]


def differentiate(
    rows: Tensor, index: Tensor, inside: Tensor, sums: Tensor, factors: Tensor, real: int, passes: Passes
) -> None:
    """Overwrite logits [n, v] with their gradient; see Passes."""
    for part in _parts(rows, passes.elements):
        passes.differentiate(rows[part], index[part], inside[part], sums[part], factors[part], real)


def _parts(rows: Tensor, elements: int) -> Iterator[slice]:
    """Ranges of rows with about `elements` elements each."""
    step = max(elements // rows.shape[1], 1)
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _log_sums(rows: Tensor, real: int) -> Tensor:
    return torch.logsumexp(rows[:, :real].to(_arithmetic(rows)), 1)


def _arithmetic(rows: Tensor) -> torch.dtype:
    """fp32, or fp64 in tests of derivatives."""
    return torch.promote_types(rows.dtype, torch.float32)


def _differentiate(rows: Tensor, index: Tensor, inside: Tensor, sums: Tensor, factors: Tensor, real: int) -> None:
    if real:
        softmax = (rows[:, :real].to(_arithmetic(rows)) - sums[:, None]).exp_()
        at_target = softmax.gather(1, index) - inside[:, None].to(softmax.dtype)
        softmax.scatter_(1, index, at_target)
        rows[:, :real] = softmax.mul_(factors)
    rows[:, real:] = 0


EAGER = Passes(_log_sums, _differentiate, elements=ROWS_ELEMENTS)


def _differentiate_in_one_pass(
    rows: Tensor, index: Tensor, inside: Tensor, sums: Tensor, factors: Tensor, real: int
) -> None:
    """The same as `_differentiate`, but reads and writes each element only once."""
    columns = torch.arange(rows.shape[1], device=rows.device)
    softmax = (rows.float() - sums[:, None]).exp()
    at_target = (columns == index) & inside[:, None]
    rows.copy_(torch.where(columns < real, (softmax - at_target.float()) * factors, 0.0))


def _log_sums_of_block(rows: Tensor) -> Tensor:
    return torch.logsumexp(rows.float(), 1)


def _differentiate_block(rows: Tensor, index: Tensor, inside: Tensor, sums: Tensor, factors: Tensor) -> None:
    _differentiate_in_one_pass(rows, index, inside, sums, factors, rows.shape[1])


def _for_any_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile once for all numbers of rows: validation batches and the last range of rows have fewer."""

    def call(*given: Any) -> Any:
        for tensor in given[:-1]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return function(*given)

    return call


@functools.cache
def _warn_about_copy() -> None:
    log.warning(
        "engine.cross_entropy=in_place: something else still refers to the logits in the backward pass, so their "
        "gradient needs the same amount of memory again"
    )


def _references(saved: Tensor) -> tuple[int, int, int]:
    """Number of references to a tensor in a backward pass: from Python, from autograd, and to its storage."""
    return sys.getrefcount(saved), saved._use_count(), torch._C._storage_Use_Count(saved.untyped_storage()._cdata)  # type: ignore[attr-defined]


class _Probe(torch.autograd.Function):
    """Counts the references that torch itself holds to a saved tensor."""

    references: tuple[int, int, int]

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return tensor.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> None:
        (saved,) = ctx.saved_tensors
        _Probe.references = _references(saved)


@functools.cache
def _references_when_unshared() -> tuple[int, int, int]:
    with torch.enable_grad():
        loss = _Probe.apply(torch.ones(1, requires_grad=True) * 1)
    loss.backward()
    return _Probe.references

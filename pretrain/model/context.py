"""Context parallelism: each rank has a part of every sample, and attends to the keys and values of all parts.

A sample is cut into 2 c equal parts for c ranks. Rank r has the parts r and 2 c - 1 - r, so that all ranks have equal
work under the causal mask.
Shapes: s sequence, b batch, n query heads, g key/value heads, d head width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.distributed.groups import ProcessGroups
from pretrain.model.attention import CausalAttention, Kernels, causal


@dataclass(frozen=True)
class Context:
    """The ranks that share samples, and the place of this rank among them."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, groups: ProcessGroups) -> "Context":
        return cls(groups.cp_rank, groups.layout.cp, groups.context_parallel)

    @property
    def parts(self) -> tuple[int, ...]:
        """This rank's parts of 2 * size; of one that is alone, the only part."""
        return (0,) if self.size == 1 else (self.rank, 2 * self.size - 1 - self.rank)

    def own(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This rank's parts of a tensor, joined along `dim`; the tensor itself if nothing is shared."""
        if self.size == 1:
            return whole
        pieces = whole.chunk(2 * self.size, dim)
        return torch.cat([pieces[part] for part in self.parts], dim)

    def places(self, length: int, device: torch.device) -> Tensor:
        """The places of this rank's tokens in samples of `length` tokens."""
        return self.own(torch.arange(length, device=device), 0)

    def gather(self, own: Tensor) -> Tensor:
        """Tensors [s / c, ...] of all ranks as one [s, ...] in the order of the sample."""
        gathered: Tensor = _Gather.apply(own, self)
        return gathered

    def in_order(self, joined: Tensor) -> Tensor:
        """[s, ...] with the parts of rank after rank -> in the order of the sample."""
        pieces = joined.chunk(2 * self.size)
        first, second = pieces[0::2], pieces[1::2]
        return torch.cat([*first, *reversed(second)])

    def by_rank(self, whole: Tensor) -> Tensor:
        """[s, ...] in the order of the sample -> the parts of rank after rank."""
        pieces = whole.chunk(2 * self.size)
        pairs = zip(pieces[: self.size], reversed(pieces[self.size :]), strict=True)
        return torch.cat([piece for pair in pairs for piece in pair])


ALONE = Context()


class _Gather(torch.autograd.Function):
    """All-gather; the gradients of a part are summed over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, context: Context) -> Tensor:
        ctx.context = context
        joined = own.new_empty(own.shape[0] * context.size, *own.shape[1:])
        dist.all_gather_into_tensor(joined, own.contiguous(), group=context.group)
        return context.in_order(joined)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        context: Context = ctx.context
        by_rank = context.by_rank(gradients[0])
        own = by_rank.new_empty(by_rank.shape[0] // context.size, *by_rank.shape[1:])
        dist.reduce_scatter_tensor(own, by_rank, group=context.group)
        return own, None


class ContextAttention(CausalAttention):
    """Core attention of one layer over samples that ranks share, or with a window.

    Recomputation of core attention gathers again, and keeps no keys and values of other ranks meanwhile.
    """

    context: Context

    def __init__(self, *args: Any, context: Context, window: int | None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.context, self.window = context, window

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, document_starts: Tensor | None, dropout: float
    ) -> Tensor:
        """query [s / c, b, n, d], key and value [s / c, b, g, d] -> [s / c, b, n * d].

        `document_starts` are those of the whole samples.
        """
        if self.context.size > 1:
            whole = self.context.gather(torch.cat((key, value), -1))  # one collective for both
            key, value = whole.split(key.shape[-1], -1)
        return attend_parts(
            query, key, value, document_starts, self.context.parts, dropout, self.kernels, window=self.window
        )


def attend_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    document_starts: Tensor | None,
    parts: Sequence[int],
    dropout: float,
    kernels: Kernels,
    *,
    window: int | None = None,
) -> Tensor:
    """Causal attention of some parts of the samples within each document.

    query [q, b, n, d] has these equal parts of the samples, one after another; key and value [s, b, g, d] -> [q, b,
    n * d].
    """
    length, samples = key.shape[:2]
    size = query.shape[0] // len(parts)
    spans = [(part * size, (part + 1) * size) for part in parts]
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))  # [b, s, n or g, d]
    if document_starts is None:
        calls = [_Call(size, 0, end) for _, end in spans]
        context = _attend(calls, query, key, value, dropout, kernels, window)
    else:
        starts = document_starts.tolist()
        calls = [
            call
            for sample in range(samples)
            for begin, end in spans
            for call in _calls(starts, sample * length, sample * length + begin, sample * length + end)
        ]
        flat_query, flat_key, flat_value = (tensor.flatten(0, 1)[None] for tensor in (query, key, value))
        context = _attend(calls, flat_query, flat_key, flat_value, dropout, kernels, window)[0]
        context = context.unflatten(0, query.shape[:2])
    return context.transpose(0, 1).flatten(2)


@dataclass(frozen=True)
class _Call:
    """Consecutive queries, and the keys that the last of them sees; the others see fewer by one each."""

    queries: int
    first: int
    end: int


def _calls(starts: Sequence[int], sample: int, begin: int, end: int) -> Iterator[_Call]:
    """One for each document in the tokens `begin` to `end` of all; their sample starts at token `sample`."""
    within = [start for start in starts if begin < start < end]
    before = max((start for start in starts if sample <= start <= begin), default=sample)
    for first, last in zip([before, *within], [*within, end], strict=True):
        yield _Call(last - max(first, begin), first, last)


def _blocks(call: _Call, window: int | None) -> Iterator[_Call]:
    """As many queries as the window is wide at a time, with the keys that one of them sees."""
    if window is None or call.end - call.first <= window:
        yield call
        return
    for begin in range(call.end - call.queries, call.end, window):
        end = min(begin + window, call.end)
        yield _Call(end - begin, max(call.first, begin - window + 1), end)


def _attend(
    calls: Sequence[_Call],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    kernels: Kernels,
    window: int | None,
) -> Tensor:
    """query [b, q, n, d], key and value [b, k, g, d] -> [b, q, n, d]."""
    blocks = [block for call in calls for block in _blocks(call, window)]
    spans = [(block.first, block.end) for block in blocks]
    queries = query.split([block.queries for block in blocks], 1)
    keys, values = (_Slices.apply(tensor, spans) for tensor in (key, value))
    with kernels.allowed(dropout):
        found = [causal(*heads, dropout, window) for heads in zip(queries, keys, values, strict=True)]
    return torch.cat(found, 1)


class _Slices(torch.autograd.Function):
    """Parts of the second dimension, which may overlap. torch's own slices would make a whole gradient for each."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, spans: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        ctx.spans, ctx.shape = spans, whole.shape
        return tuple(whole[:, first:end] for first, end in spans)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].new_zeros(ctx.shape)
        for (first, end), gradient in zip(ctx.spans, gradients, strict=True):
            whole[:, first:end] += gradient
        return whole, None

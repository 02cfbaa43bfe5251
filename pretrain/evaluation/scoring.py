"""Log-probabilities of continuations: the primitive of all tasks, at any layout.

Equal requests are scored once. Requests are sorted by length, packed into batches of about as many tokens as
`batch_size` whole samples, and padded on the right, which earlier tokens do not see. A context of several requests is
read once, into a KV cache. Data-parallel ranks share the batches. Only sums leave the ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.engine.interface import Engine
from pretrain.evaluation.requests import Request

if TYPE_CHECKING:
    from pretrain.distributed.groups import ProcessGroups

SHARED = 16
"""Tokens of the shortest context that is worth a cache."""
PARTS = 3
"""Continuations after cached contexts are scored in so many parts by length, so that little is padded."""
CACHED = 8
"""Largest number of tokens in caches, in multiples of a batch's."""

AskStop = Callable[[], Callable[[], bool]]
"""Called on all ranks before a batch; its answer, the same on all of them, is read after the batch."""


@dataclass(frozen=True)
class Scored:
    """The result of a request."""

    log_probability: float
    """The log-probability of the continuation after the context, in nats."""
    is_greedy: bool
    """Whether every token of it is the likeliest at its place."""


@dataclass(frozen=True)
class Scoring:
    """The sizes of batches, and the ranks that share them."""

    seq_length: int
    batch_size: int
    """Texts of `seq_length` tokens that a rank takes at once, or more that are shorter."""
    rank: int = 0
    """This data-parallel rank, of `size`."""
    size: int = 1
    control: dist.ProcessGroup | None = None
    """All ranks; None: there is one."""
    contributes: bool = True
    """True on one rank of each replica."""
    one_shape: bool = False
    """Every batch is filled up to `batch_size` rows of `seq_length` tokens, so that a compiled model is compiled
    once."""


def scoring_together(groups: "ProcessGroups", *, seq_length: int, batch_size: int, one_shape: bool = False) -> Scoring:
    """Scoring by all ranks of these groups."""
    return Scoring(
        seq_length=seq_length,
        batch_size=batch_size,
        rank=groups.replica,
        size=groups.layout.replicas,
        control=groups.control,
        contributes=groups.counts_samples,
        one_shape=one_shape,
    )


def score(
    engine: Engine, requests: Sequence[Request], how: Scoring, ask_stop: AskStop = lambda: lambda: False
) -> list[Scored] | None:
    """Score the requests, in their order, on all ranks together; every rank gets all results.

    None: `ask_stop` said so. Raises ValueError for an empty context, or a continuation longer than the model sees.
    """
    if any(not request.context or not request.continuation for request in requests):
        raise ValueError("a request needs at least a token before the continuation, and one in it")
    fitted = [request.within(how.seq_length) for request in requests]
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    index = [places.setdefault((each.context, each.continuation), len(places)) for each in fitted]
    unique = [Request(*texts) for texts in places]
    found = torch.zeros(len(unique), 2, dtype=torch.float64)
    families, others = ([], list(range(len(unique)))) if how.one_shape else _families(unique)
    alone = [(_scored_alone, own) for own in _batches(unique, others, how)]
    together = [(_scored_together, own) for own in _family_batches(unique, families, how)]
    # Of each kind equal numbers on all data-parallel ranks: at ZeRO-3 they gather parameters together.
    rounds = [kind[first : first + how.size] for kind in (alone, together) for first in range(0, len(kind), how.size)]
    for number, batches in enumerate(rounds):
        is_to_stop = ask_stop()
        scored, own = batches[min(how.rank, len(batches) - 1)]
        sums = scored(engine, [unique[i] for i in own], how)
        if how.contributes and how.rank < len(batches):
            found[own] = sums
        if is_to_stop() and number + 1 < len(rounds):
            return None
    if how.control is not None:
        dist.all_reduce(found, group=how.control)
    return [Scored(total, bool(greedy)) for total, greedy in found[index].tolist()]


def _families(requests: Sequence[Request]) -> tuple[list[list[int]], list[int]]:
    """Indices of the requests that share a long context, by context; and of all others."""
    by_context: dict[tuple[int, ...], list[int]] = {}
    for i, request in enumerate(requests):
        by_context.setdefault(request.context, []).append(i)
    families, others = [], []
    for context, members in by_context.items():
        if len(members) > 1 and len(context) >= SHARED:
            families.append(members)
        else:
            others += members
    return families, others


def _family_batches(requests: Sequence[Request], families: Sequence[list[int]], how: Scoring) -> list[list[int]]:
    """The families in batches: those with the longest contexts first, each batch as large as memory allows."""
    order = sorted(families, key=lambda family: -len(requests[family[0]].context))
    batches: list[list[int]] = []
    largest = how.batch_size * how.seq_length
    contexts = cached = 0
    for family in order:
        own = len(requests[family[0]].context)
        longest = max(len(requests[i].tokens) for i in family)
        contexts, cached = contexts + own, cached + len(family) * longest
        if not batches or contexts > largest or cached > CACHED * largest:
            batches.append([])
            contexts, cached = own, len(family) * longest
        batches[-1] += family
    return batches


def _batches(requests: Sequence[Request], chosen: Sequence[int], how: Scoring) -> list[list[int]]:
    """The chosen indices of requests, longest first, in batches."""
    order = sorted(chosen, key=lambda i: -len(requests[i].tokens))
    batches, first = [], 0
    while first < len(order):
        fitting = how.batch_size * how.seq_length // (len(requests[order[first]].tokens) - 1)
        rows = how.batch_size if how.one_shape else max(how.batch_size, fitting)
        batches.append(order[first : first + rows])
        first += rows
    return batches


def _scored_alone(engine: Engine, requests: Sequence[Request], how: Scoring) -> Tensor:
    """[b, 2]: log-probability of each continuation, and whether all of it is greedy."""
    filled = [*requests, *[requests[0]] * (how.batch_size - len(requests) if how.one_shape else 0)]
    rows = [request.tokens for request in filled]
    longest = max(how.seq_length + 1 if how.one_shape else 0, *map(len, rows))
    tokens = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
    scores = engine.score(tokens).cpu()
    return torch.stack([_sums(scores[:, i], len(each.context) - 1, each) for i, each in enumerate(requests)])


def _scored_together(engine: Engine, requests: Sequence[Request], how: Scoring) -> Tensor:
    """Like `_scored_alone`, of requests of which those with one context follow each other: it is read once."""
    contexts = list(dict.fromkeys(request.context for request in requests))
    place = {context: row for row, context in enumerate(contexts)}
    cache = engine.new_cache(len(contexts), max(len(request.tokens) for request in requests))
    engine.extend([context[:-1] for context in contexts], cache)
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].continuation))
    sums = torch.zeros(len(requests), 2, dtype=torch.float64)
    for number in range(PARTS):  # on all ranks as many
        own = order[len(order) * number // PARTS : len(order) * (number + 1) // PARTS] or order[-1:]
        # The last token of the context predicts the first one of the continuation.
        rows = [(requests[i].context[-1], *requests[i].continuation) for i in own]
        scores = engine.score_next(rows, cache.selected([place[requests[i].context] for i in own])).cpu()
        sums[own] = torch.stack([_sums(scores[:, row], 0, requests[i]) for row, i in enumerate(own)])
    return sums


def _sums(scores: Tensor, first: int, request: Request) -> Tensor:
    """[2]: the log-probability of a row's continuation, and whether all of it is greedy.

    `scores`: [2, s], for each target; the continuation starts at target `first`.
    """
    own = scores[:, first : first + len(request.continuation)].double()
    return torch.stack((own[0].sum(), own[1].min()))

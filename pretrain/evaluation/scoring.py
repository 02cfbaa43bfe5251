"""Log-probabilities of continuations: the primitive of all tasks, at any layout.

Requests are sorted by length, packed into batches and padded on the right, which earlier tokens do not see.
Data-parallel
ranks share them. Only sums leave the ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.engine.interface import Engine

if TYPE_CHECKING:
    from pretrain.distributed.groups import ProcessGroups


@dataclass(frozen=True)
class Request:
    """A continuation and the tokens before it, at least one of each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def within(self, length: int) -> "Request":
        """The request as a model of `length` tokens sees it: without the beginning of a context that is too long.

        Raises ValueError if the continuation alone is too long.
        """
        if len(self.continuation) > length:
            raise ValueError(f"a continuation of {len(self.continuation)} tokens, the model sees {length} at once")
        # The last token is only predicted.
        return Request(self.context[-(length + 1 - len(self.continuation)) :], self.continuation)


@dataclass(frozen=True)
class Scored:
    """The result of a request."""

    log_probability: float
    """The log-probability of the continuation after the context, in nats."""
    is_greedy: bool
    """Whether every token of it is the likeliest at its place."""


def score(
    engine: Engine,
    requests: Sequence[Request],
    *,
    seq_length: int,
    batch_size: int,
    rank: int,
    size: int,
    control: dist.ProcessGroup | None,
    contributes: bool = True,
    one_shape: bool = False,
) -> list[Scored]:
    """Score the requests, in their order, on all ranks together; every rank gets all results.

    `rank` of `size` data-parallel ranks; `contributes`: on one rank of each replica. `control` sums over all ranks;
    None: there is one. `one_shape`: every batch is filled up to `batch_size` rows of `seq_length` tokens.

    Raises ValueError for an empty context, or a continuation longer than the model sees.
    """
    if any(not request.context or not request.continuation for request in requests):
        raise ValueError("a request needs at least a token before the continuation, and one in it")
    fitted = [request.within(seq_length) for request in requests]
    order = sorted(range(len(fitted)), key=lambda i: -len(fitted[i].context) - len(fitted[i].continuation))
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    # Equal numbers on all data-parallel ranks: at ZeRO-3 they gather parameters together.
    rounds = -(-len(batches) // size)
    found = torch.zeros(len(requests), 2, dtype=torch.float64)
    for number in range(rounds):
        place = number * size + rank
        own = batches[place] if place < len(batches) else batches[-1]
        filled = [*own, *[own[0]] * (batch_size - len(own) if one_shape else 0)]
        tokens = _padded([fitted[i] for i in filled], seq_length + 1 if one_shape else 0)
        sums = _sums(engine.score(tokens).cpu(), [fitted[i] for i in own])
        if contributes and place < len(batches):
            found[own] = sums
    if control is not None:
        dist.all_reduce(found, group=control)
    return [Scored(total, bool(greedy)) for total, greedy in found.tolist()]


def score_together(
    engine: Engine,
    requests: Sequence[Request],
    groups: "ProcessGroups",
    *,
    seq_length: int,
    batch_size: int,
    one_shape: bool = False,
) -> list[Scored]:
    """`score` on all ranks of these groups."""
    return score(
        engine,
        requests,
        seq_length=seq_length,
        batch_size=batch_size,
        rank=groups.dp_rank,
        size=groups.layout.dp,
        control=groups.control,
        contributes=groups.tp_rank == groups.pp_rank == 0,
        one_shape=one_shape,
    )


def _padded(requests: Sequence[Request], at_least: int) -> Tensor:
    rows = [[*request.context, *request.continuation] for request in requests]
    longest = max(at_least, *map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])


def _sums(scores: Tensor, requests: Sequence[Request]) -> Tensor:
    """scores [2, b, s] -> [b, 2]: log-probability of each continuation, and whether all of it is greedy."""
    rows = []
    for row, request in enumerate(requests):
        end = len(request.context) + len(request.continuation) - 1
        own = scores[:, row, len(request.context) - 1 : end].double()
        rows.append(torch.stack((own[0].sum(), own[1].min())))
    return torch.stack(rows)

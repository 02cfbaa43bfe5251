"""Log-probabilities of continuations: the primitive of all tasks, at any layout.

Equal requests are scored once. Requests are sorted by length, packed into batches of about as many tokens as
`batch_size` whole samples, and padded on the right, which earlier tokens do not see. Data-parallel ranks share the
batches. Only sums leave the ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.engine.interface import Engine

if TYPE_CHECKING:
    from pretrain.distributed.groups import ProcessGroups

AskStop = Callable[[], Callable[[], bool]]
"""Called on all ranks before a batch; its answer, the same on all of them, is read after the batch."""


@dataclass(frozen=True)
class Request:
    """A continuation and the tokens before it, at least one of each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    num_bytes: int = 0
    """Size of the continuation's text."""

    def within(self, length: int) -> "Request":
        """The request as a model of `length` tokens sees it: without the beginning of a context that is too long.

        Raises ValueError if the continuation alone is too long.
        """
        if len(self.continuation) > length:
            raise ValueError(f"a continuation of {len(self.continuation)} tokens, the model sees {length} at once")
        # The last token is only predicted.
        context = self.context[-(length + 1 - len(self.continuation)) :]
        return self if len(context) == len(self.context) else Request(context, self.continuation, self.num_bytes)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.context + self.continuation


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
        rank=groups.dp_rank,
        size=groups.layout.dp,
        control=groups.control,
        contributes=groups.tp_rank == groups.pp_rank == 0,
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
    batches = _batches(unique, how)
    # Equal numbers on all data-parallel ranks: at ZeRO-3 they gather parameters together.
    for first in range(0, len(batches), how.size):
        is_to_stop = ask_stop()
        place = first + how.rank
        own = batches[min(place, len(batches) - 1)]
        sums = _scored_alone(engine, [unique[i] for i in own], how)
        if how.contributes and place < len(batches):
            found[own] = sums
        if is_to_stop() and first + how.size < len(batches):
            return None
    if how.control is not None:
        dist.all_reduce(found, group=how.control)
    return [Scored(total, bool(greedy)) for total, greedy in found[index].tolist()]


def _batches(requests: Sequence[Request], how: Scoring) -> list[list[int]]:
    """The indices of the requests, longest first, in batches."""
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
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


def _sums(scores: Tensor, first: int, request: Request) -> Tensor:
    """scores [2, s] of a row, whose continuation starts at target `first` -> [2]."""
    own = scores[:, first : first + len(request.continuation)].double()
    return torch.stack((own[0].sum(), own[1].min()))

"""The log-probability of given tokens, and whether each is the likeliest, without gathering logits.

Shapes: b samples, s targets, w columns of this tensor-parallel rank. Only tensors [b, s] are exchanged: the logits of a
vocabulary of 128,000 tokens would take GBs.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def token_scores(logits: Tensor, targets: Tensor, *, first: int, real: int, group: dist.ProcessGroup | None) -> Tensor:
    """logits [b, s, w], targets [b, s] -> [2, b, s] in fp32: log-probabilities, and 1 where no token is likelier.

    This rank's columns start at token `first`; those from token `real` on are padding. `group`: the ranks that have the
    other columns.
    """
    values = logits.float()
    width = values.shape[-1]
    if first + width > real:
        values[..., max(0, real - first) :] = -torch.inf
    highest = _reduced(values.amax(-1), dist.ReduceOp.MAX, group)
    sums = _reduced((values - highest[..., None]).exp().sum(-1), dist.ReduceOp.SUM, group)
    places = (targets - first).clamp(0, width - 1)
    inside = (targets >= first) & (targets < first + width)
    own = torch.where(inside, values.gather(-1, places[..., None])[..., 0], -torch.inf)
    own = _reduced(own, dist.ReduceOp.MAX, group)
    return torch.stack((own - highest - sums.log(), (own == highest).float()))


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(values, operation, group=group)
    return values

"""Which experts a token passes through, and the weighted sum of their outputs. In plain torch: a decoder uses it too.

Shapes: n tokens, h hidden size, E experts, e of them on this rank, k experts for each token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.config.model import ExpertsConfig


@dataclass(frozen=True)
class Choices:
    """The router's decision for each token. Numbers are fp32 [..., E], and [..., k] after the choice."""

    logits: Tensor
    scores: Tensor
    experts: Tensor
    """Numbers of the chosen experts [..., k]."""
    weights: Tensor
    """Weights of their outputs [..., k]."""


def choose(hidden: Tensor, weight: Tensor, bias: Tensor, config: ExpertsConfig) -> Choices:
    """hidden [..., h], weight [E, h]; bias [E] is added to the scores for the choice alone (Wang et al. 2024)."""
    logits = functional.linear(hidden.float(), weight.float())
    scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
    chosen = (scores.detach() + bias).topk(config.topk, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if config.normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Choices(logits, scores, chosen, weights * config.scale)


def weighted_outputs(
    run: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, chosen: Tensor, weights: Tensor, own: range, count: int
) -> Tensor:
    """tokens [n, h], chosen [n, k], weights [n, k] -> the sum of the outputs of the experts `own` of `count` [n, h].

    `run(inputs, ends)` computes all of them: the inputs of each expert end at its place in `ends` [e].
    """
    expert, topk = chosen.flatten() - own.start, chosen.shape[1]
    is_part = len(own) < count
    if is_part:
        expert = torch.where((expert >= 0) & (expert < len(own)), expert, len(own))
    order = expert.argsort(stable=True)  # choices, expert after expert; those of other ranks last
    sizes = torch.zeros(len(own) + 1, dtype=torch.int64, device=expert.device)
    sizes.scatter_add_(0, expert, torch.ones_like(expert))
    ends = sizes[: len(own)].cumsum(0).to(torch.int32)
    if is_part:
        order = order[: int(ends[-1])]  # the host waits here for the device
    output = run(tokens[order // topk], ends) * weights.flatten()[order, None].to(tokens.dtype)
    # A sum in the order of the choices: atomic additions on a GPU would have another order each time.
    placed = output.new_zeros(chosen.numel(), output.shape[1]).index_copy(0, order, output)
    return placed.view(*chosen.shape, -1).sum(1)


def stacked_product(inputs: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """inputs [n, columns], those of each expert before its place in `ends` [e]; weight [e, rows, columns]."""
    product: Tensor = functional.grouped_mm(inputs, weight.transpose(1, 2), offs=ends)
    return product

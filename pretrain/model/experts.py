"""A feed-forward block of experts: each token passes through the k that the router chooses, and no token is dropped.

The experts of a layer are stacked in two parameters, and grouped matrix products run all of them at once. Ranks that
share the experts gather their tokens, apply their own experts, and sum the outputs.

Shapes: n tokens, h hidden size, k experts for each token, e experts on this rank, f their inner width on this rank.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from pretrain.config.model import ExpertsConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.model.expert_products import stacked_product, weighted_outputs
from pretrain.model.expert_split import ExpertSplit
from pretrain.model.feed_forward import FeedForward, swiglu
from pretrain.model.router import Router


class ExpertsFeedForward(nn.Module):
    """Router, experts, and an expert that all tokens share if there is one."""

    def __init__(self, config: TransformerConfig, experts: ExpertsConfig, width: int, groups: ProcessGroups) -> None:
        """`width`: the inner width of an expert."""
        super().__init__()
        self.group = groups.expert_model
        self.router = Router(config, experts, (groups.tensor_parallel, groups.context_parallel))
        self.experts = GroupedExperts(config, experts.count, width, groups.layout.ep, self.group)
        self.shared = FeedForward(config, experts.shared_ffn_hidden_size) if experts.shared_ffn_hidden_size else None

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        """hidden [s, b, h] -> [s, b, h], and no bias."""
        chosen, weights = self.router(hidden)
        tokens, chosen, weights = (values.flatten(0, 1) for values in (hidden, chosen, weights))
        if self.group.size() > 1:
            tokens, chosen, weights = (
                gather_from_sequence_parallel_region(values, group=self.group) for values in (tokens, chosen, weights)
            )
        output: Tensor = self.experts(tokens, chosen, weights)
        if self.group.size() > 1:
            output = reduce_scatter_to_sequence_parallel_region(output, group=self.group)
        output = output.view(hidden.shape)
        if self.shared is not None:
            output = output + self.shared(hidden)[0]
        return output, None


def bound_block(experts: ExpertsConfig, width: int, groups: ProcessGroups) -> type[ExpertsFeedForward]:
    """The class with these arguments bound: Megatron's layers make their block from a class and a configuration."""

    class Bound(ExpertsFeedForward):
        def __init__(self, config: TransformerConfig) -> None:
            super().__init__(config, experts, width, groups)

    return Bound


class GroupedExperts(nn.Module):
    """The experts of this rank."""

    activate: Callable[[Tensor, Tensor | None], Tensor]
    """(output of the first matrix, None) -> input of the second [n, f]; compile.py may replace it."""

    def __init__(self, config: TransformerConfig, count: int, width: int, ep: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.config, etp = config, group.size() // ep
        own, inner = count // ep, width // etp
        first = group.rank() // etp * own
        self.own, self.of = range(first, first + own), count
        matrices = 2 if config.gated_linear_unit else 1
        self.linear_fc1 = Stacked(own, matrices * inner, config.hidden_size)
        self.linear_fc2 = Stacked(own, config.hidden_size, inner)
        place = (ep, group.rank() // etp, etp, group.rank() % etp)
        self.linear_fc1.weight.expert_split = ExpertSplit(*place, dim=1, matrices=matrices)  # type: ignore[attr-defined]
        self.linear_fc2.weight.expert_split = ExpertSplit(*place, dim=2)  # type: ignore[attr-defined]
        self.activate = self._activate

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """tokens [n, h], chosen [n, k], weights [n, k] -> weighted sum of the outputs of this rank's experts [n, h]."""
        return weighted_outputs(self._run, tokens, chosen, weights, self.own, self.of)

    def _run(self, inputs: Tensor, ends: Tensor) -> Tensor:
        output: Tensor = self.linear_fc2(self.activate(self.linear_fc1(inputs, ends), None), ends)
        return output

    def _activate(self, inner: Tensor, _bias: Tensor | None) -> Tensor:
        return swiglu(inner) if self.config.gated_linear_unit else self.config.activation_func(inner)


class Stacked(nn.Module):
    """One matrix of each expert, as one parameter [e, rows, columns]."""

    def __init__(self, count: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, rows, columns))

    def forward(self, inputs: Tensor, ends: Tensor) -> Tensor:
        """inputs [n, columns], those of each expert before its place in `ends` [e] -> [n, rows]."""
        return stacked_product(inputs, self.weight, ends)

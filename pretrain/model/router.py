"""The router of a layer with experts, and the losses that balance its choices.

Every loss here is a mean over sequences or tokens: a function of the batch, and not of how it is cut into
micro-batches or split over ranks. Shapes: s sequence, b batch, h hidden size, E experts, k experts for each token.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch import Tensor, nn
from torch.nn import functional

from pretrain.config.model import ExpertsConfig
from pretrain.model.expert_products import choose


class Router(nn.Module):
    """Chooses k experts for each token. Everything is computed in fp32."""

    weight: nn.Parameter
    """[E, h]."""
    bias: Tensor
    """[E], added to the scores for the choice alone: balancing without a loss (Wang et al. 2024, DeepSeek-V3)."""
    load: Tensor
    """[E]: choices of the tokens that this rank has trained on since the last update."""
    name: str
    """Its name in the whole model."""

    def __init__(self, config: TransformerConfig, experts: ExpertsConfig, groups: Sequence[dist.ProcessGroup]) -> None:
        """`groups`: the tensor- and the context-parallel ranks, which have parts of the same sequences."""
        super().__init__()
        self.experts = experts
        self.groups = [group for group in groups if group.size() > 1]
        self.parts = math.prod(group.size() for group in self.groups)
        self.weight = nn.Parameter(torch.empty(experts.count, config.hidden_size))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def start(self, name: str, device: torch.device) -> None:
        """Make the state besides the parameter. Buffers would be cast to 16 bits by DeepSpeed."""
        self.name = name
        for state in ("bias", "load"):
            object.__setattr__(self, state, torch.zeros(self.experts.count, device=device))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [s, b, h] of this rank -> the chosen experts [s, b, k], and the weights of their outputs [s, b, k]."""
        choices = choose(hidden, self.weight, self.bias, self.experts)
        weights = choices.weights
        if torch.is_grad_enabled():
            load = functional.one_hot(choices.experts, self.experts.count).sum(-2)  # [s, b, E]
            # A recomputed layer runs twice, the first time without gradients: it is counted once.
            self.load += load.sum((0, 1))
            loss = self._balance_loss(choices.logits, choices.scores, load)
            if loss is not None:
                weights = MoEAuxLossAutoScaler.apply(weights, loss)
        return choices.experts, weights

    def _balance_loss(self, logits: Tensor, scores: Tensor, choices: Tensor) -> Tensor | None:
        experts, length = self.experts, logits.shape[0] * self.parts
        losses = []
        if experts.sequence_loss:  # DeepSeek-V3, equations 17 to 20
            shares = scores if experts.score == "softmax" else scores / scores.sum(-1, keepdim=True)
            mean_share, load = shares.sum(0) / length, choices.sum(0).float()  # [b, E] each
            for group in self.groups:
                mean_share = reduce_from_tensor_model_parallel_region(mean_share, group=group)
                dist.all_reduce(load, group=group)
            fraction = load * (experts.count / (experts.topk * length))
            losses.append(experts.sequence_loss * (fraction * mean_share).sum(-1).mean())
        if experts.z_loss:  # Zoph et al. 2022, equation 5; each rank adds the share of its tokens
            losses.append(experts.z_loss * logits.logsumexp(-1).square().mean() / self.parts)
        return torch.stack(losses).sum() if losses else None

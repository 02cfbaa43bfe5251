"""Balance experts without a loss: after each step, the bias of an expert with few tokens rises, and others' fall."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from pretrain.distributed.groups import ProcessGroups
from pretrain.engine.interface import StateShard
from pretrain.model.router import Router


class ExpertBalance:
    """The state of the routers of a stage that no optimizer has."""

    def __init__(self, routers: Sequence[Router], groups: ProcessGroups) -> None:
        self.routers, self.groups = routers, groups

    @torch.no_grad()
    def after_step(self, *, applied: bool) -> None:
        """Move the biases by the choices of the step, if it was applied, and count from 0 again."""
        biased = [router for router in self.routers if router.experts.bias_rate]
        if biased and applied:
            # Ranks without sequence parallelism never share a stage's tokens: checks.py asks for it.
            loads = torch.stack([router.load for router in biased])
            for group in (self.groups.tensor_parallel, self.groups.data_parallel):
                if group.size() > 1:
                    dist.all_reduce(loads, group=group)
            for router, load in zip(biased, loads, strict=True):
                router.bias += router.experts.bias_rate * (load.mean() - load).sign()
                router.bias -= router.bias.mean()  # a common shift changes no choice, and would grow
        for router in self.routers:
            router.load.zero_()

    def state_shards(self) -> Iterator[StateShard]:
        """The biases, for checkpoints. All ranks of a stage hold the same."""
        layout = self.groups.layout
        copy, copies = self.groups.dp_rank * layout.tp + self.groups.tp_rank, layout.dp * layout.tp
        for router in self.routers:
            shape = tuple(router.bias.shape)
            yield StateShard(f"weight/{router.name}.bias", shape, (0,), shape, 0, router.bias, copy, copies)

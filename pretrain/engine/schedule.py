"""Megatron's forward-backward schedules over an engine.

Megatron asks a model for `config`, `model_type` and `set_input_tensor`, and an engine's own `.config` is a dict: a
thin handle stands between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from pretrain.model.gpt import Decoder


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees."""

    tokens: Tensor
    """[b, s + 1]: inputs and, one further, labels."""
    mask: Tensor | None
    """[b]: 1 for samples that count, 0 for padding; None: all count."""


class ModelHandle(nn.Module):
    """This rank's model as Megatron's schedules want it; calls go to the engine so that its hooks run."""

    stage_module: Decoder
    call: Callable[..., Tensor]

    def __init__(self, decoder: Decoder, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.config = decoder.config
        self.model_type = decoder.model_type
        self.vp_stage = None
        # Past nn.Module's registry: the engine's modules must not appear twice.
        object.__setattr__(self, "stage_module", decoder)
        object.__setattr__(self, "call", call)

    def set_input_tensor(self, tensor: Any) -> None:
        self.stage_module.set_input_tensor(tensor)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [b, s + 1] -> loss of each token [b, s], fp32."""
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        return self.call(inputs, positions_of(inputs), None, labels=labels)


def positions_of(tokens: Tensor) -> Tensor:
    """Position ids [b, s] of whole samples."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)


def run_schedule(handle: ModelHandle, batches: list[MicroBatch], *, forward_only: bool) -> Tensor:
    """Run all micro-batches, leaving gradients of their mean loss; returns sum of losses and tokens, fp64 [2]."""
    tokens = batches[0].tokens
    collected: list[Tensor] = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=iter(batches),
        model=[handle],
        num_microbatches=len(batches),
        seq_length=tokens.shape[1] - 1,
        micro_batch_size=tokens.shape[0],
        forward_only=forward_only,
    )
    return torch.stack(collected).sum(0)


def _forward_step(batches: Iterator[MicroBatch], handle: ModelHandle) -> tuple[Tensor, Callable[[Tensor], Any]]:
    batch = next(batches)
    return handle(batch.tokens), partial(_reduce_loss, batch.mask)


def _reduce_loss(mask: Tensor | None, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The micro-batch's mean for the backward pass, and [sum, count] for the record."""
    per_sample = losses.sum(1)
    counted = per_sample.detach().double()
    weights = torch.ones_like(counted) if mask is None else mask.double()
    record = torch.stack([(counted * weights).sum(), weights.sum() * losses.shape[1]])
    return losses.mean(), record

"""Megatron's forward-backward schedules over an engine.

Megatron asks a model for `config`, `model_type` and `set_input_tensor`, and an engine's own `.config` is a dict: a
thin handle stands between, one for each chunk of this rank.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn
from torch.nn import functional

from pretrain.model.gpt import Chunk, Stage


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees."""

    tokens: Tensor
    """[b, s + 1]: inputs and, one further, labels."""
    weights: Tensor | None
    """[b, s]: of each target in the loss, 1 on average where gradients are taken; None: all 1."""
    cuts: Tensor | None
    """On the host: where attention begins anew among the b * s inputs (document_cuts); None: with each sample."""


class ChunkHandle(nn.Module):
    """One chunk as Megatron's schedules want it; calls go to the engine so that its hooks run."""

    chunk: Chunk
    call: Callable[..., Tensor]

    def __init__(self, chunk: Chunk, call: Callable[..., Tensor], document_end: int | None) -> None:
        super().__init__()
        self.document_end = document_end
        self.config = chunk.config
        self.model_type = chunk.model_type
        self.vp_stage = chunk.vp_stage
        # Past nn.Module's registry: the engine's modules must not appear twice.
        object.__setattr__(self, "chunk", chunk)
        object.__setattr__(self, "call", call)

    def set_input_tensor(self, tensor: Any) -> None:
        self.chunk.set_input_tensor(tensor)

    def forward(self, tokens: Tensor, cuts: Tensor | None) -> Tensor:
        """tokens [b, s + 1] -> on the last stage loss of each token [b, s], fp32; else hidden states."""
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        return self.call(inputs, self._positions(inputs), cuts, labels=labels)

    def logits(self, tokens: Tensor, cuts: Tensor | None) -> Tensor:
        """tokens [b, s] -> on the last stage logits [b, s, v / tp]; else hidden states."""
        return self.call(tokens, self._positions(tokens), cuts)

    def _positions(self, tokens: Tensor) -> Tensor:
        """Every stage has the tokens, so nothing of this is sent."""
        if self.document_end is None:
            return positions_of(tokens)
        return positions_in_documents(tokens, self.document_end)


def chunk_handles(stage: Stage, call: Callable[..., Tensor], document_end: int | None) -> list[ChunkHandle]:
    """A handle for each chunk; `call` takes the number of the chunk first.

    `document_end`: the token that ends a document, where documents are kept apart.
    """
    chunks: Iterable[Any] = stage.chunks
    return [ChunkHandle(chunk, partial(call, i), document_end) for i, chunk in enumerate(chunks)]


def positions_of(tokens: Tensor) -> Tensor:
    """Position ids [b, s] of whole samples."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)


def positions_in_documents(tokens: Tensor, document_end: int) -> Tensor:
    """Position ids [b, s] of tokens [b, s] within their documents; one that a sample cuts begins anew with it."""
    positions = positions_of(tokens)
    return positions - torch.where(_begins(tokens, document_end), positions, 0).cummax(1).values


def document_cuts(tokens: Tensor, document_end: int) -> Tensor:
    """Where documents begin among tokens [b, s], one sample after the other, but for the first; on the host."""
    begins = _begins(tokens, document_end)
    begins[:, 0] = True
    return begins.flatten().nonzero().flatten()[1:]


def _begins(tokens: Tensor, document_end: int) -> Tensor:
    """Which tokens [b, s] begin a document that began in no earlier sample; ends that follow an end, which are padding,
    belong to the same document."""
    ends = tokens == document_end
    return functional.pad(ends[:, :-1] & ~ends[:, 1:], (1, 0))


def run_schedule(handles: list[ChunkHandle], batches: list[MicroBatch], *, forward_only: bool) -> Tensor:
    """Run all micro-batches, leaving gradients of their mean loss.

    Returns the sum of weighted losses and of weights, fp64 [2]; zeros on all stages but the last.
    """
    tokens = batches[0].tokens
    collected = _schedule(handles, batches, _forward_step, tokens.shape[0], tokens.shape[1] - 1, forward_only)
    return torch.stack(collected).sum(0) if collected else torch.zeros(2, dtype=torch.float64, device=tokens.device)


@torch.no_grad()
def run_logits(handles: list[ChunkHandle], batch: MicroBatch) -> Tensor | None:
    """Logits [b, s, v / tp] of tokens [b, s] on the last stage, None on the others."""
    # Each chunk takes its batch from the same list: as many as an interleaved schedule asks for at least.
    config = handles[0].config
    repeats = config.pipeline_model_parallel_size if len(handles) > 1 else 1
    size, length = batch.tokens.shape
    collected = _schedule(handles, [batch] * repeats, _logits_step, size, length, True, collect_non_loss_data=True)
    return collected[0] if collected else None


def _schedule(
    handles: list[ChunkHandle],
    batches: list[MicroBatch],
    step: Callable[..., Any],
    micro_batch_size: int,
    seq_length: int,
    forward_only: bool,
    **options: Any,
) -> list[Tensor]:
    iterators = [iter(batches) for _ in handles]
    collected: list[Tensor] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iterators if len(handles) > 1 else iterators[0],
        model=list(handles),
        num_microbatches=len(batches),
        seq_length=seq_length,
        micro_batch_size=micro_batch_size,
        forward_only=forward_only,
        **options,
    )
    return collected


def _forward_step(batches: Iterator[MicroBatch], handle: ChunkHandle) -> tuple[Tensor, Callable[[Tensor], Any]]:
    batch = next(batches)
    return handle(batch.tokens, batch.cuts), partial(_reduce_loss, batch.weights)


def _logits_step(batches: Iterator[MicroBatch], handle: ChunkHandle) -> tuple[Tensor, Callable[..., Tensor]]:
    batch = next(batches)
    return handle.logits(batch.tokens, batch.cuts), lambda logits, non_loss_data: logits


def _reduce_loss(weights: Tensor | None, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The micro-batch's mean for the backward pass, and [sum, count] for the record."""
    if weights is not None:
        losses = losses * weights
    total = losses.detach().sum(1).double().sum()
    record = torch.stack([total, torch.full_like(total, losses.numel()) if weights is None else weights.double().sum()])
    return losses.mean(), record

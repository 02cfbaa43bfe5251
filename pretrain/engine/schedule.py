"""Run Megatron's forward-backward schedules over an engine.

Megatron reads `config`, `model_type` and `set_input_tensor` from a model. DeepSpeed's engine has another `config`, so
each chunk of this rank has a thin handle with these attributes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn
from torch.nn import functional

from pretrain.model.context import ALONE, Context
from pretrain.model.gpt import Chunk, Stage


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass."""

    tokens: Tensor
    """[b, s + 1]: inputs and, one further, labels."""
    weights: Tensor | None
    """[b, s / c]: the weight of each of this rank's targets in the loss, 1 on average over a training step; None: all
    1."""
    document_starts: Tensor | None
    """Indices, on the host, of document starts among the b * s inputs; None: each sample is one document."""
    positions: Tensor | None = None
    """[b, s]: positions of the inputs, if they do not start at 0."""


class ChunkHandle(nn.Module):
    """A chunk with the attributes that Megatron's schedules read. Calls go to the engine, so that its hooks run."""

    chunk: Chunk
    call: Callable[..., Tensor]

    def __init__(self, chunk: Chunk, call: Callable[..., Tensor], eod_id: int | None, context: Context) -> None:
        super().__init__()
        self.eod_id, self.context = eod_id, context
        self.config = chunk.config
        self.model_type = chunk.model_type
        self.vp_stage = chunk.vp_stage
        # Bypasses nn.Module's registry: the engine's modules must not appear twice.
        object.__setattr__(self, "chunk", chunk)
        object.__setattr__(self, "call", call)

    def set_input_tensor(self, tensor: Any) -> None:
        self.chunk.set_input_tensor(tensor)

    def forward(self, tokens: Tensor, document_starts: Tensor | None) -> Tensor:
        """tokens [b, s + 1] -> on the last stage the loss of each token of this rank [b, s / c] in fp32, on the others
        hidden states."""
        inputs, labels, own = tokens[:, :-1], tokens[:, 1:], self.context.own
        return self.call(own(inputs), own(self._positions(inputs)), document_starts, labels=own(labels))

    def logits(self, tokens: Tensor, document_starts: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """tokens [b, s] -> on the last stage logits [b, s / c, v / tp] of this rank's tokens, on the others hidden
        states.

        Texts with a cache have positions: each rank reads the whole of them.
        """
        if positions is not None:
            return self.call(tokens, positions, document_starts)
        return self.call(self.context.own(tokens), self.context.own(self._positions(tokens)), document_starts)

    def _positions(self, tokens: Tensor) -> Tensor:
        """Every stage has the tokens, so positions are not sent between stages."""
        if self.eod_id is None:
            return positions_of(tokens)
        return positions_in_documents(tokens, self.eod_id)


def chunk_handles(
    stage: Stage, call: Callable[..., Tensor], eod_id: int | None, context: Context = ALONE
) -> list[ChunkHandle]:
    """A handle for each chunk; `call` takes the index of the chunk first.

    `eod_id`: the token that ends a document, if attention stays within documents.
    """
    chunks: Iterable[Any] = stage.chunks
    return [ChunkHandle(chunk, partial(call, i), eod_id, context) for i, chunk in enumerate(chunks)]


def positions_of(tokens: Tensor) -> Tensor:
    """Position ids [b, s] of whole samples."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)


def positions_in_documents(tokens: Tensor, eod_id: int) -> Tensor:
    """Position ids [b, s] of tokens [b, s] within their documents. Each sample starts at position 0."""
    positions = positions_of(tokens)
    return positions - torch.where(_follows_an_end(tokens, eod_id), positions, 0).cummax(1).values


def document_starts(tokens: Tensor, eod_id: int) -> Tensor:
    """Indices among the b * s flattened tokens at which documents or samples start, except 0. Runs on the host."""
    starts = _follows_an_end(tokens, eod_id)
    starts[:, 0] = True
    return starts.flatten().nonzero().flatten()[1:]


def _follows_an_end(tokens: Tensor, eod_id: int) -> Tensor:
    """Which tokens [b, s] follow the end of a document. Repeated end tokens are padding of the same document."""
    ends = tokens == eod_id
    return functional.pad(ends[:, :-1] & ~ends[:, 1:], (1, 0))


def run_schedule(handles: list[ChunkHandle], batches: list[MicroBatch], *, forward_only: bool) -> Tensor:
    """Run all micro-batches and compute the gradients of their mean loss.

    Returns the sum of weighted losses and the sum of weights, fp64 [2]; zeros on all stages except the last.
    """
    tokens = batches[0].tokens
    collected = _schedule(handles, batches, _forward_step, tokens.shape[0], tokens.shape[1] - 1, forward_only)
    return torch.stack(collected).sum(0) if collected else torch.zeros(2, dtype=torch.float64, device=tokens.device)


@torch.no_grad()
def run_logits(handles: list[ChunkHandle], batch: MicroBatch) -> Tensor | None:
    """Logits [b, s / c, v / tp] of this rank's tokens of [b, s] on the last stage, None on the others."""
    # Each chunk takes its batch from the same list, which has as many as an interleaved schedule needs.
    config = handles[0].config
    repeats = config.pipeline_model_parallel_size if len(handles) > 1 else 1
    size, length = batch.tokens.shape
    if batch.positions is not None:
        length *= handles[0].context.size  # Megatron divides it by the number of ranks that share samples
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
    return handle(batch.tokens, batch.document_starts), partial(_reduce_loss, batch.weights, handle.context.size)


def _logits_step(batches: Iterator[MicroBatch], handle: ChunkHandle) -> tuple[Tensor, Callable[..., Tensor]]:
    batch = next(batches)
    logits = handle.logits(batch.tokens, batch.document_starts, batch.positions)
    return logits, lambda logits, non_loss_data: logits


def _reduce_loss(weights: Tensor | None, sharers: int, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The micro-batch's mean loss for the backward pass, and [sum, count] to report.

    Megatron's schedules multiply a loss by the number of ranks that share samples. The gradients are a mean over these
    ranks already.
    """
    if weights is not None:
        losses = losses * weights
    total = losses.detach().sum(1).double().sum()
    record = torch.stack([total, torch.full_like(total, losses.numel()) if weights is None else weights.double().sum()])
    return losses.mean() / sharers, record

"""The engine over DeepSpeed and Megatron: a training step, evaluation and logits, at ZeRO stages 0 to 3.

Everything that depends on the ZeRO stage is behind `ShardedOptimizer` (optimizer/interface.py).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from pretrain.config.derived import padded_vocab_size
from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.distributed.groups import DeepSpeedGroups, ProcessGroups
from pretrain.engine.deepspeed_config import sums_in_fp32
from pretrain.engine.device import Stopwatch, to_device
from pretrain.engine.expert_balance import ExpertBalance
from pretrain.engine.interface import StateShard, StepResult
from pretrain.engine.optimizer.adam import MOMENTS
from pretrain.engine.optimizer.families import family_of
from pretrain.engine.optimizer.gradients import copies_of
from pretrain.engine.optimizer.interface import OptimizerSettings, ShardedOptimizer
from pretrain.engine.optimizer.new import new_optimizer
from pretrain.engine.optimizer.whole_matrices import share_matrices
from pretrain.engine.schedule import MicroBatch, chunk_handles, document_starts, run_logits, run_schedule
from pretrain.engine.shards import logical_shards
from pretrain.engine.text_cache import EngineCache, new_cache, reading
from pretrain.engine.token_scores import token_scores
from pretrain.engine.vendor_patches import import_deepspeed, show_experts
from pretrain.model.context import ALONE, Context
from pretrain.model.gpt import Stage
from pretrain.model.parameters import logical_parts
from pretrain.model.text_rows import Placed, last_places


class ZeroEngine:
    """An `Engine` (interface.py) over DeepSpeed."""

    optimizer: ShardedOptimizer

    def __init__(
        self,
        stage: Stage,
        *,
        model: ModelConfig,
        engine: EngineConfig,
        optim: OptimConfig,
        deepspeed_config: dict[str, Any],
        gather_per_step: bool,
        vocab_size: int,
        micro_batch_size: int,
        eod_id: int | None,
        groups: ProcessGroups,
        device: torch.device,
    ) -> None:
        """`gather_per_step`: ZeRO-3 gathers a stage's parameters once per step and keeps them.

        `eod_id`: the token that ends a document, if attention stays within documents; None: it spans whole samples.
        """
        self.stage, self.model, self.vocab_size, self.groups, self.device = stage, model, vocab_size, groups, device
        self.micro_batch_size, self.eod_id = micro_batch_size, eod_id
        self._readers: list[Callable[[], None]] = []
        if groups.layout.has_experts_apart and stage.routers and not family_of(engine).optimizer.partitions_parameters:
            show_experts(stage, groups)
        self.engine, *_ = import_deepspeed(device).initialize(
            model=stage,
            optimizer=new_optimizer(stage, model, optim),
            config=deepspeed_config,
            mpu=DeepSpeedGroups(groups),
        )
        self.optimizer = family_of(engine).optimizer(
            self.engine,
            stage,
            groups,
            OptimizerSettings(
                precision=engine.precision,
                clip_grad_norm=optim.clip_grad_norm,
                loss_scale=engine.loss_scale,
                reduce_per_step=bool(deepspeed_config["managed_gradient_accumulation"]),
                gather_per_step=gather_per_step,
            ),
        )
        share_matrices(self.optimizer, model, optim.muon)
        if sums_in_fp32(engine):
            for parameter in stage.parameters():
                # Micro-batches are summed in fp32 (torch >= 2.10): in 16 bits, 32 of them lose 0.6 % of the gradient.
                parameter.grad_dtype = torch.float32
        if engine.precision == "fp16":
            stage.config.grad_scale_func = self.optimizer.scale_loss
        self.context = Context.of(groups)
        self.handles = chunk_handles(stage, self.optimizer.forward, eod_id, self.context)
        self.balance = ExpertBalance(stage.routers, groups)

    def train_step(self, tokens: Tensor, lr: float, mask: Tensor | None = None) -> StepResult:
        watch = Stopwatch(self.device)
        watch.mark()
        self.engine.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_gradients()
        self.optimizer.gather_until_step()
        parts = tokens.split(self.micro_batch_size)
        weights = [None] * len(parts) if mask is None else self._weights(mask).split(self.micro_batch_size)
        micro_batches = [self._micro_batch(own, own[:, :-1], given) for own, given in zip(parts, weights, strict=True)]
        with self.optimizer.reduction():
            totals = self._sum_over_all_ranks(run_schedule(self.handles, micro_batches, forward_only=False))
        watch.mark()
        while self._readers:
            self._readers.pop()()
        loss_scale = self.optimizer.loss_scale
        self.engine.step()  # finishes the reduction over data-parallel ranks, then calls the step of `self.optimizer`
        applied = bool(self.engine.was_step_applied())
        self.balance.after_step(applied=applied)
        watch.mark()
        total, count = totals.tolist()  # until here the host waited for the device once, for the norm
        return StepResult(
            loss=total / count,
            grad_norm=self.optimizer.grad_norm / loss_scale if applied else math.inf,
            applied=applied,
            loss_scale=loss_scale,
            seconds_forward_backward=watch.seconds(0),
            seconds_optimizer=watch.seconds(1),
        )

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, mask: Tensor) -> Tensor:
        self.engine.eval()
        parts = zip(*(tensor.split(self.micro_batch_size) for tensor in (tokens, mask)), strict=True)
        batches = [
            self._micro_batch(own, own[:, :-1], to_device(counted, self.device).float())
            for own, counted in self._pad_micro_batches(list(parts))
        ]
        totals = self._sum_over_all_ranks(run_schedule(self.handles, batches, forward_only=True))
        self.optimizer.release_gathered()
        return totals

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        own, padded = self._own_logits(tokens)
        return self._gather_logits(own, padded.shape, self.context)[:, : tokens.shape[1], : self.vocab_size]

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        own, padded = self._own_logits(tokens[:, :-1])
        targets = functional.pad(tokens[:, 1:], (0, padded.shape[1] - tokens.shape[1] + 1))
        return self._scores(own, targets, self.context)[:, :, : tokens.shape[1] - 1]

    @torch.no_grad()
    def score_next(self, tokens: Sequence[Sequence[int]], cache: EngineCache) -> Tensor:
        own, _ = self._extended([row[:-1] for row in tokens], cache)
        longest = max(map(len, tokens))
        targets = torch.tensor([[*row[1:], *[row[-1]] * (longest - len(row))] for row in tokens])
        return self._scores(own, targets, ALONE)

    def _extended(self, tokens: Sequence[Sequence[int]], cache: EngineCache) -> tuple[Tensor | None, Placed]:
        """Append tokens to the texts; returns this rank's logits after each of them, on the last stage."""
        self.engine.eval()
        parts = self.groups.layout.tp if self.stage.config.sequence_parallel else 1
        placed = cache.rows.add(tokens, multiple_of=parts)
        batch = MicroBatch(placed.tokens, None, None, placed.positions)
        with reading(self.stage, cache, placed):
            own = run_logits(self.handles, batch)
        self.optimizer.release_gathered()
        return own, placed

    def _scores(self, own: Tensor | None, targets: Tensor, context: Context) -> Tensor:
        """Scores [2, b, s] of targets [b, s] by this rank's logits [b, >= s / c, v / tp], on every rank of the replica.

        `context`: the ranks that have logits of other tokens.
        """
        layout, (rows, length) = self.groups.layout, targets.shape
        scores = torch.zeros(2, rows, length, device=self.device)
        if own is not None:
            targets = context.own(targets)
            found = token_scores(
                own[:, : targets.shape[1]],
                to_device(targets.contiguous(), self.device),
                first=self.groups.tp_rank * own.shape[-1],
                real=self.vocab_size,
                group=self.groups.tensor_parallel if layout.tp > 1 else None,
            )
            if self.groups.tp_rank == 0:
                scores[:, :, context.places(length, self.device)] = found
        return self._sum_over_replica(scores, context)

    def new_cache(self, rows: int, capacity: int | None = None) -> EngineCache:
        return new_cache(rows, capacity or self.model.seq_length, self.eod_id, self.device)

    @torch.no_grad()
    def extend(self, tokens: Sequence[Sequence[int]], cache: EngineCache) -> Tensor:
        own, placed = self._extended(tokens, cache)
        if own is not None:
            own = own[last_places(placed.counts, self.device)][:, None]
        shape = torch.Size((len(placed.counts), 1))
        return self._gather_logits(own, shape, ALONE)[:, 0, : self.vocab_size]

    def _own_logits(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """This rank's logits [b, s / c, v / tp], on the last stage; and the tokens, padded as the layout needs.

        Sequence and context parallelism divide the sequence into equal parts. Earlier tokens do not see the padding at
        its end.
        """
        self.engine.eval()
        parts = self.groups.layout.tp if self.stage.config.sequence_parallel else 1
        parts *= 2 * self.context.size if self.context.size > 1 else 1
        padded = functional.pad(tokens, (0, -tokens.shape[1] % parts))
        own = run_logits(self.handles, self._micro_batch(padded, padded, None))
        self.optimizer.release_gathered()
        return own, padded

    def before_next_update(self, wait: Callable[[], None]) -> None:
        self._readers.append(wait)

    def state_shards(self, *, weights_only: bool = False) -> Iterator[StateShard]:
        kinds = () if weights_only else MOMENTS
        layout = self.groups.layout
        for held in self.optimizer.state(kinds):
            local = self.stage.local[held.parameter]
            parts = logical_parts(
                local, model=self.model, vocab_size=self.vocab_size, tp=layout.tp, tp_rank=self.groups.tp_rank
            )
            yield from logical_shards(held, parts, *copies_of(local, self.groups, replicated=self.optimizer.replicated))
        yield from self.balance.state_shards()

    def counters(self) -> dict[str, float]:
        return self.optimizer.counters()

    def load_counters(self, counters: Mapping[str, float]) -> None:
        self.optimizer.load_counters(counters)
        self.optimizer.refresh_parameters()

    def _micro_batch(self, tokens: Tensor, inputs: Tensor, weights: Tensor | None) -> MicroBatch:
        """Build a micro-batch from tokens on the host. Document starts are found there, without a device sync."""
        starts = None if self.eod_id is None else document_starts(inputs, self.eod_id)
        return MicroBatch(
            to_device(tokens, self.device), None if weights is None else self.context.own(weights), starts
        )

    def _weights(self, mask: Tensor) -> Tensor:
        """Weights [n, s] with which the mean over the global batch is the mean over the targets that count.

        If no target counts there is no mean: all weights are NaN, so the update is skipped.
        """
        weights = to_device(mask, self.device).double()
        mean = weights.mean() / self.groups.layout.dp
        dist.all_reduce(mean, group=self.groups.data_parallel)
        return (weights / mean).float()

    def _sum_over_all_ranks(self, totals: Tensor) -> Tensor:
        """Sum the last stage's totals over data-parallel ranks, counting tensor-parallel ranks once."""
        if self.groups.tp_rank:
            totals.zero_()
        dist.all_reduce(totals, group=self.groups.world)
        return totals

    def _pad_micro_batches(self, parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Fill up the last micro-batch, and the number of micro-batches that an interleaved schedule needs.

        All samples that are added are masked.
        """
        tokens, mask = parts[-1]
        if tokens.shape != parts[0][0].shape:  # all micro-batches of a pipeline have one shape
            missing = parts[0][0].shape[0] - tokens.shape[0]
            tokens = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            parts[-1] = (tokens, functional.pad(mask, (0, 0, 0, missing)))
        if len(self.handles) > 1:
            parts += [(tokens, torch.zeros_like(parts[-1][1]))] * (-len(parts) % self.groups.layout.pp)
        return parts

    def _gather_logits(self, own: Tensor | None, shape: torch.Size, context: Context) -> Tensor:
        """Gather the logits from the last stage's ranks onto every rank of the replica.

        `context`: the ranks that have logits of other tokens.
        """
        layout = self.groups.layout
        rows = padded_vocab_size(self.model, self.vocab_size, layout.tp)
        whole = torch.zeros(*shape, rows, device=self.device)
        if own is not None:
            first = self.groups.tp_rank * (rows // layout.tp)
            places = context.places(shape[1], self.device)
            whole[:, places, first : first + own.shape[-1]] = own.float()
        return self._sum_over_replica(whole, context)

    def _sum_over_replica(self, values: Tensor, context: Context) -> Tensor:
        """Sum over the ranks that compute the same samples together."""
        if self.groups.layout.tp * self.groups.layout.pp > 1:
            dist.all_reduce(values, group=self.groups.model_parallel)
        if context.size > 1:
            dist.all_reduce(values, group=context.group)
        return values

"""DeepSpeed behind our words: one engine around this rank's stage, ZeRO 0 to 3, fp32, bf16 and fp16.

Written against deepspeed 0.19.8; what is said about its inner ways holds for that version.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.distributed.groups import DeepSpeedGroups, ProcessGroups
from pretrain.distributed.vendor_imports import without_compiler
from pretrain.engine import replicated
from pretrain.engine.deepspeed_config import sums_in_fp32
from pretrain.engine.device import Stopwatch, to_device
from pretrain.engine.gradients import (
    begin_loss_scale,
    change_scale_after_update,
    complete,
    forget_gradients,
    global_norm,
    hand_norm_to_deepspeed,
    pieces_of,
)
from pretrain.engine.interface import StateShard, StepResult
from pretrain.engine.nvme_offload import is_on_disk, on_disk, write_parameters
from pretrain.engine.param_gather import BackwardCounts, fetch_without_traces, hold
from pretrain.engine.schedule import MicroBatch, chunk_handles, document_cuts, run_logits, run_schedule
from pretrain.engine.shards import (
    MOMENTS,
    adam_steps,
    basic_optimizer,
    copies_of,
    flat_pieces,
    logical_shards,
    set_adam_steps,
)
from pretrain.model.gpt import Stage
from pretrain.model.parameters import logical_parts, padded_rows
from pretrain.optim.param_groups import decay_groups


class ZeroEngine:
    """An `Engine` (interface.py) over DeepSpeed."""

    def __init__(
        self,
        stage: Stage,
        *,
        model: ModelConfig,
        engine: EngineConfig,
        optim: OptimConfig,
        deepspeed_config: dict[str, Any],
        hold_parameters: bool,
        vocab_size: int,
        micro_batch_size: int,
        document_end: int | None,
        groups: ProcessGroups,
        device: torch.device,
    ) -> None:
        """`hold_parameters`: ZeRO-3 gathers a stage's parameters once a step and keeps them.

        `document_end`: the token after which attention begins anew; None: it spans whole samples.
        """
        deepspeed = import_deepspeed(device)
        self.stage, self.model, self.vocab_size, self.groups, self.device = stage, model, vocab_size, groups, device
        self.zero, self.precision, self.clip = engine.zero_stage, engine.precision, optim.clip_grad_norm
        self.hold_parameters, self.micro_batch_size = hold_parameters, micro_batch_size
        self.document_end = document_end
        self._norm = math.nan
        self._readers: list[Callable[[], None]] = []
        named = stage.named()
        tied = {parameter for parameter, local in stage.local.items() if local.tied}
        optimizer_groups = [
            # ZeRO 1 and 2 cut each group in equal parts: alone in one, a tied weight is cut alike at both ends.
            group
            for alone in (False, True)
            for group in decay_groups([item for item in named if (item[2] in tied) == alone], optim.weight_decay)
        ]
        adamw = torch.optim.AdamW(
            optimizer_groups,
            lr=0.0,  # set anew at each step; DeepSpeed takes a step of its own while it starts at stage 0 in 16 bits
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=optim.fused,
            foreach=not optim.fused,
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=stage, optimizer=adamw, config=deepspeed_config, mpu=DeepSpeedGroups(groups)
        )
        set_adam_steps(self._basic_optimizer, 0)
        if self.precision == "fp16":
            begin_loss_scale(self.optimizer, self.zero, engine.loss_scale)
        if self.zero == 3:
            fetch_without_traces(self.optimizer)
        if sums_in_fp32(engine):
            for parameter in stage.parameters():
                # Micro-batches are summed in fp32 (torch >= 2.10); in 16 bits 32 of them lose 0.6 % of the gradient.
                parameter.grad_dtype = torch.float32
        if self.zero == 0 and groups.layout.dp == 1:
            # One rank has nothing to sum, and DeepSpeed would copy all gradients into a flat tensor and back.
            self.engine.enable_backward_allreduce = False
        self._reduce_per_step = bool(deepspeed_config["managed_gradient_accumulation"])
        self._counts = BackwardCounts() if self.zero == 3 else None
        self._begin_update_with_own_norm()
        if self.zero:
            self._begin_backward_ready()
        if self.precision == "fp16":
            stage.config.grad_scale_func = self._scale_loss
        self.handles = chunk_handles(stage, self._forward, document_end)

    def train_step(self, tokens: Tensor, lr: float, mask: Tensor | None = None) -> StepResult:
        watch = Stopwatch(self.device)
        watch.mark()
        self.engine.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        forget_gradients(self.optimizer, self.zero)
        if self.hold_parameters:
            hold(self.stage.parameters())
        parts = tokens.split(self.micro_batch_size)
        weights = [None] * len(parts) if mask is None else self._weights(mask).split(self.micro_batch_size)
        micro_batches = [self._micro_batch(own, own[:, :-1], given) for own, given in zip(parts, weights, strict=True)]
        with self.engine.coalesce_grad_reduction() if self._reduce_per_step else contextlib.nullcontext():
            totals = self._over_all_ranks(run_schedule(self.handles, micro_batches, forward_only=False))
        watch.mark()
        while self._readers:
            self._readers.pop()()
        loss_scale = self._loss_scale()
        self.engine.step()
        applied = bool(self.engine.was_step_applied())
        watch.mark()
        total, count = totals.tolist()  # until here the host waited once, for the norm
        return StepResult(
            loss=total / count,
            grad_norm=self._norm / loss_scale if applied else math.inf,
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
            for own, counted in self._whole_turns(list(parts))
        ]
        totals = self._over_all_ranks(run_schedule(self.handles, batches, forward_only=True))
        self._let_go()
        return totals

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        self.engine.eval()
        length = tokens.shape[1]
        # Sequence parallelism cuts the sequence in equal parts; what is added at its end, no earlier token sees.
        parts = self.groups.layout.tp if self.stage.config.sequence_parallel else 1
        padded = functional.pad(tokens, (0, -length % parts))
        own = run_logits(self.handles, self._micro_batch(padded, padded, None))  # [b, s, v / tp]
        self._let_go()
        return self._whole_logits(own, padded.shape)[:, :length, : self.vocab_size]

    def before_next_update(self, wait: Callable[[], None]) -> None:
        self._readers.append(wait)

    def state_shards(self, *, weights_only: bool = False) -> Iterator[StateShard]:
        kinds = () if weights_only else MOMENTS
        layout = self.groups.layout
        for piece in flat_pieces(self.optimizer, self.zero, self.groups, kinds):
            local = self.stage.local[piece.parameter]
            parts = logical_parts(
                local, model=self.model, vocab_size=self.vocab_size, tp=layout.tp, tp_rank=self.groups.tp_rank
            )
            yield from logical_shards(piece, parts, *copies_of(local, self.groups, replicated=self.zero == 0))

    def counters(self) -> dict[str, float]:
        return {"adam_steps": adam_steps(self._basic_optimizer), **self._scaler_counters()}

    def restored(self, counters: Mapping[str, float]) -> None:
        set_adam_steps(self._basic_optimizer, counters["adam_steps"])
        scaler = self.optimizer.loss_scaler if self.precision == "fp16" else None
        for name in self._scaler_counters():
            if name in counters:
                setattr(scaler, name, type(getattr(scaler, name))(counters[name]))
        self._refresh_parameters()

    def _forward(self, chunk: int, *args: Any, **kwargs: Any) -> Tensor:
        # At stage 0 DeepSpeed refuses a backward pass that it did not start, and has no hooks to run.
        output: Tensor = (self.engine if self.zero else self.stage)(chunk, *args, **kwargs)
        if self._counts is not None:
            self._counts.remember(self.stage.chunks[chunk])
        return output

    def _micro_batch(self, tokens: Tensor, inputs: Tensor, weights: Tensor | None) -> MicroBatch:
        """Of tokens on the host, where alone documents are looked for: the device is asked nothing within a step."""
        cuts = None if self.document_end is None else document_cuts(inputs, self.document_end)
        return MicroBatch(to_device(tokens, self.device), weights, cuts)

    def _let_go(self) -> None:
        """After forward passes without a step: some of ZeRO-3's parameters stay gathered."""
        if self.zero == 3:
            self.optimizer.empty_partition_cache()

    def _weights(self, mask: Tensor) -> Tensor:
        """[n, s] such that the mean over the global batch is that of the targets that count, wherever they lie.

        Where none counts there is no mean: all are NaN, which keeps the update from the parameters.
        """
        weights = to_device(mask, self.device).double()
        mean = weights.mean() / self.groups.layout.dp
        dist.all_reduce(mean, group=self.groups.data_parallel)
        return (weights / mean).float()

    def _over_all_ranks(self, totals: Tensor) -> Tensor:
        """Sum over data-parallel ranks of what the last stage has, once for all tensor-parallel ranks."""
        if self.groups.tp_rank:
            totals.zero_()
        dist.all_reduce(totals, group=self.groups.world)
        return totals

    def _whole_turns(self, parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Interleaved schedules take micro-batches in turns of as many as there are stages: masked ones complete it."""
        tokens, mask = parts[-1]
        if tokens.shape != parts[0][0].shape:  # all micro-batches of a pipeline have one shape
            missing = parts[0][0].shape[0] - tokens.shape[0]
            tokens = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            parts[-1] = (tokens, functional.pad(mask, (0, 0, 0, missing)))
        if len(self.handles) > 1:
            parts += [(tokens, torch.zeros_like(parts[-1][1]))] * (-len(parts) % self.groups.layout.pp)
        return parts

    def _whole_logits(self, own: Tensor | None, shape: torch.Size) -> Tensor:
        """What the last stage's tensor-parallel ranks have, put together, on every rank."""
        layout = self.groups.layout
        rows = padded_rows(self.model, self.vocab_size, layout.tp)
        whole = torch.zeros(*shape, rows, device=self.device)
        if own is not None:
            first = self.groups.tp_rank * (rows // layout.tp)
            whole[..., first : first + own.shape[-1]] = own.float()
        if layout.tp * layout.pp > 1:
            dist.all_reduce(whole, group=self.groups.model_parallel)
        return whole

    def _begin_update_with_own_norm(self) -> None:
        """Before each update gradients are completed and measured by our rule (gradients.py)."""
        if self.zero:
            hand_norm_to_deepspeed(self.optimizer, lambda: self._norm)
            change_scale_after_update(self.optimizer)
        # What goes to the disk goes there before the update begins.
        name = "finalize_gradient_accumulation_boundary" if is_on_disk(self.optimizer) else "step"
        go_on, adam = getattr(self.optimizer, name), self._basic_optimizer.step
        parameters = list(self.stage.local)

        def measured(*args: Any, **kwargs: Any) -> Any:
            pieces = list(pieces_of(self.optimizer, self.zero, parameters, self.groups))
            complete(pieces, self.stage.local, self.groups)
            self._norm = global_norm(pieces, self.stage.local, self.groups, replicated=self.zero == 0)
            if self.zero:
                return go_on(*args, **kwargs)
            scale = self._loss_scale()
            replicated.update(self.optimizer, adam, norm=self._norm / scale, clip=self.clip, scale=scale)
            return None

        setattr(self.optimizer, name, measured)

    def _begin_backward_ready(self) -> None:
        """Before each backward: DeepSpeed's state as after a forward, which in a pipeline was another micro-batch's."""
        begin = self.optimizer.backward_prologue

        def backward_prologue(*args: Any, **kwargs: Any) -> Any:
            # Inner stages receive gradients that are scaled already, which DeepSpeed takes for a mistake.
            self.engine._manual_backward_expected = True
            if not self._reduce_per_step:
                # Else the second of two backwards in a row reduces nothing, silently.
                self.optimizer.clear_backward_seen_flag()
            if self._counts is not None:
                self._counts.restore()
            return begin(*args, **kwargs)

        self.optimizer.backward_prologue = backward_prologue

    @property
    def _basic_optimizer(self) -> torch.optim.Optimizer:
        return basic_optimizer(self.optimizer)

    @torch.no_grad()
    def _refresh_parameters(self) -> None:
        """Copy the fp32 masters into the parameters that forward uses."""
        if self.zero == 0 and self.precision != "fp32":
            replicated.copy_into_parameters(self.optimizer)
        elif self.zero in (1, 2):
            for i, master in enumerate(self.optimizer.single_partition_of_fp32_groups):
                partitions = self.optimizer.parallel_partitioned_bit16_groups[i]
                partitions[self.groups.dp_rank].copy_(master)
                dist.all_gather(list(partitions), partitions[self.groups.dp_rank], group=self.groups.data_parallel)
        elif self.zero == 3:
            for i, master in enumerate(self.optimizer.fp32_partitioned_groups_flat):
                held = self.optimizer.fp16_partitioned_groups_flat[i]
                if held is None:
                    write_parameters(self.optimizer, i)
                else:
                    held.copy_(on_disk(self.optimizer, master, master))

    def _scale_loss(self, loss: Tensor) -> Tensor:
        if self.zero == 0:
            return loss * self._loss_scale()
        return self.engine.scale(loss)

    def _loss_scale(self) -> float:
        return float(self.optimizer.loss_scaler.cur_scale) if self.precision == "fp16" else 1.0

    def _scaler_counters(self) -> dict[str, float]:
        if self.precision != "fp16":
            return {}
        names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        return {name: getattr(self.optimizer.loss_scaler, name) for name in names}


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, ready for this device and silent."""
    with without_compiler():
        import deepspeed
        from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401  # later it would be imported all the same

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type != "cuda":
        # DeepSpeed compiles a shared-memory op on its first CPU run (half a minute, needs a compiler), which only
        # inference uses. It looks for the op in this cache (deepspeed/ops/__init__.py) and goes on without it.
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
        # It refuses fp16 where the CPU has no instructions for it; torch computes it all the same, if slowly.
        deepspeed.get_accelerator().is_fp16_supported = lambda: True
    return deepspeed

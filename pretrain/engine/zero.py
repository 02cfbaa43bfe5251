"""DeepSpeed behind our words: one engine around the decoder, ZeRO 0 to 3, fp32, bf16 and fp16.

Written against deepspeed 0.19.8; what is said about its inner ways holds for that version.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.interface import StateShard, StepResult
from pretrain.engine.schedule import MicroBatch, ModelHandle, positions_of, run_schedule
from pretrain.engine.shards import MOMENTS, adam_steps, flat_pieces, logical_shards, set_adam_steps
from pretrain.layout.groups import DeepSpeedGroups, ProcessGroups
from pretrain.layout.vendor_imports import without_compiler
from pretrain.model.gpt import Decoder
from pretrain.optim.param_groups import decay_groups


class ZeroEngine:
    """An `Engine` (interface.py) over DeepSpeed."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        model: ModelConfig,
        engine: EngineConfig,
        optim: OptimConfig,
        micro_batch_size: int,
        groups: ProcessGroups,
        device: torch.device,
    ) -> None:
        deepspeed = _import_deepspeed(device)
        self.decoder, self.model, self.groups, self.device = decoder, model, groups, device
        self.stage, self.precision = engine.zero_stage, engine.precision
        self.micro_batch_size = micro_batch_size
        named = list(decoder.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in named}  # ZeRO-3 empties the parameters
        self.names = {parameter: name for name, parameter in named}
        adamw = torch.optim.AdamW(
            decay_groups(named, optim.weight_decay),
            lr=0.0,  # set anew at each step; DeepSpeed takes a step of its own while it starts at stage 0 in 16 bits
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=True,
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=decoder,
            optimizer=adamw,
            config=deepspeed_config(engine, micro_batch_size=micro_batch_size, clip_grad_norm=optim.clip_grad_norm),
            mpu=DeepSpeedGroups(groups),
        )
        set_adam_steps(self._basic_optimizer, 0)
        if self.precision != "fp32":
            for parameter in decoder.parameters():
                # Micro-batches are summed in fp32 (torch >= 2.10); in 16 bits 32 of them lose 0.6 % of the gradient.
                parameter.grad_dtype = torch.float32
        if self.stage == 0 and self.precision == "fp32":
            _clip_and_check_inside_step(self.optimizer, optim.clip_grad_norm)
        if self.precision == "fp16":
            decoder.config.grad_scale_func = self._scale_loss
        # At stage 0 DeepSpeed refuses a backward pass that it did not start, and has no hooks to run.
        self.handle = ModelHandle(decoder, self.engine.module if self.stage == 0 else self.engine)

    def train_step(self, tokens: Tensor, lr: float) -> StepResult:
        started = time.perf_counter()
        self.engine.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        micro_batches = [MicroBatch(part, None) for part in tokens.to(self.device).split(self.micro_batch_size)]
        totals = run_schedule(self.handle, micro_batches, forward_only=False)
        dist.all_reduce(totals, group=self.groups.data_parallel)
        loss = (totals[0] / totals[1]).item()
        ran = time.perf_counter()
        loss_scale = self._loss_scale()
        self.engine.step()
        applied = bool(self.engine.was_step_applied())
        return StepResult(
            loss=loss,
            grad_norm=self._grad_norm(loss_scale) if applied else math.inf,
            applied=applied,
            loss_scale=loss_scale,
            seconds_forward_backward=ran - started,
            seconds_optimizer=time.perf_counter() - ran,
        )

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, mask: Tensor) -> Tensor:
        self.engine.eval()
        parts = zip(*(t.to(self.device).split(self.micro_batch_size) for t in (tokens, mask)), strict=True)
        totals = run_schedule(self.handle, [MicroBatch(*part) for part in parts], forward_only=True)
        dist.all_reduce(totals, group=self.groups.data_parallel)
        return totals

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        self.engine.eval()
        tokens = tokens.to(self.device)
        logits: Tensor = self.handle.call(tokens, positions_of(tokens), None)  # [b, s, padded vocabulary]
        return logits[..., : self.decoder.real_vocab_size].float()

    def state_shards(self, *, weights_only: bool = False) -> Iterator[StateShard]:
        kinds = () if weights_only else MOMENTS
        for piece in flat_pieces(self.optimizer, self.stage, self.precision, self.names, self.groups, kinds):
            yield from logical_shards(piece, self.shapes[piece.name], self.model, self.decoder.real_vocab_size)

    def counters(self) -> dict[str, float]:
        return {"adam_steps": adam_steps(self._basic_optimizer), **self._scaler_counters()}

    def restored(self, counters: Mapping[str, float]) -> None:
        set_adam_steps(self._basic_optimizer, counters["adam_steps"])
        scaler = self._scaler
        for name in self._scaler_counters():
            if name in counters:
                setattr(scaler, name, type(getattr(scaler, name))(counters[name]))
        self._refresh_parameters()

    @property
    def _basic_optimizer(self) -> torch.optim.Optimizer:
        """torch's AdamW, which DeepSpeed wraps in all but the plainest case."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @torch.no_grad()
    def _refresh_parameters(self) -> None:
        """Copy the fp32 masters into the parameters that forward uses."""
        if self.stage == 0 and self.precision != "fp32":
            for masters, parameters in zip(self.optimizer.fp32_groups, self.optimizer.fp16_groups, strict=True):
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)
        elif self.stage in (1, 2):
            for i, master in enumerate(self.optimizer.single_partition_of_fp32_groups):
                partitions = self.optimizer.parallel_partitioned_bit16_groups[i]
                partitions[self.groups.dp_rank].copy_(master)
                dist.all_gather(list(partitions), partitions[self.groups.dp_rank], group=self.groups.data_parallel)
        elif self.stage == 3:
            for i, master in enumerate(self.optimizer.fp32_partitioned_groups_flat):
                self.optimizer.fp16_partitioned_groups_flat[i].copy_(master)

    def _scale_loss(self, loss: Tensor) -> Tensor:
        if self.stage == 0:
            return loss * self._loss_scale()
        return self.engine.scale(loss)

    def _loss_scale(self) -> float:
        return float(self._scaler.cur_scale) if self.precision == "fp16" else 1.0

    @property
    def _scaler(self) -> Any:
        """Where DeepSpeed keeps the dynamic loss scale: one place in ZeRO's optimizers, another at stage 0."""
        return getattr(self.optimizer, "loss_scaler", None) or getattr(self.optimizer, "loss_scale_config", None)

    def _scaler_counters(self) -> dict[str, float]:
        if self.precision != "fp16":
            return {}
        names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        return {name: getattr(self._scaler, name) for name in names if hasattr(self._scaler, name)}

    def _grad_norm(self, loss_scale: float) -> float:
        if self.stage == 0 and self.precision == "fp32":
            return float(self.optimizer.last_grad_norm)
        norm = float(self.engine.get_global_grad_norm())
        return norm / loss_scale if self.stage == 0 else norm  # stage 0 reports the norm of scaled gradients


def _import_deepspeed(device: torch.device) -> Any:
    with without_compiler():
        import deepspeed
        from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401  # later it would be imported all the same

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        # DeepSpeed compiles a shared-memory op on its first CPU run (half a minute, needs a compiler), which only
        # inference uses. It looks for the op in this cache (deepspeed/ops/__init__.py) and goes on without it.
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
        # It refuses fp16 where the CPU has no instructions for it; torch computes it all the same, if slowly.
        deepspeed.get_accelerator().is_fp16_supported = lambda: True
    return deepspeed


def _clip_and_check_inside_step(optimizer: torch.optim.Optimizer, clip_grad_norm: float) -> None:
    """Stage 0 in fp32: give the bare optimizer what DeepSpeed's other ones do, and under the same names.

    The step is left out where the norm is not finite; `overflow` is how the engine learns of it.
    """
    update = optimizer.step
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step(closure: None = None) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.last_grad_norm = norm  # type: ignore[attr-defined]
        optimizer.overflow = not bool(torch.isfinite(norm))  # type: ignore[attr-defined]
        if optimizer.overflow:  # type: ignore[attr-defined]
            return
        if clip_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
        update()

    optimizer.step = step  # type: ignore[method-assign, assignment]

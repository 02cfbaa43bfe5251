"""The training loop: step, record, evaluate, save, stop, in that order.

The last step of an attempt is saved before it is evaluated, so a failed validation loses no step.

While a step is computed the ranks agree on what follows it, so that no rank waits for a message.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.distributed as dist

from data_pipeline.stream.loader import Batch
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.engine.interface import StepResult, Trainable
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.speed import StepClock, memory_use
from pretrain.training.divergence import count_faults, refuse_divergence
from pretrain.training.profiling import StepProfiler
from pretrain.training.time_limit import NO_LIMIT, TimeLimit

log = logging.getLogger(__name__)

Values = Mapping[str, float | int | str]


class Recorder(Protocol):
    """Takes records. It does nothing on ranks other than the main one."""

    def __call__(self, kind: str, step: int, values: Values) -> None: ...


class Evaluator(Protocol):
    """Measures the loss on held-out text; called on all ranks together. None: a rank is asked to stop."""

    def __call__(self, *, max_samples: int | None) -> Values | None: ...


class Checkpoints(Protocol):
    """Decides when to save, and saves."""

    def due_by_clock(self) -> int:
        """The levels that are due to save, by this rank's clock."""

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        """Save if a save is due; called on all ranks with the same values. The `last` save is on the disk on return."""

    def last_name(self) -> str:
        """The name of the newest checkpoint, for messages."""


class NeverSave:
    """A checkpointer that never saves, for bench and verify-resume."""

    def due_by_clock(self) -> int:
        return 0

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        pass

    def last_name(self) -> str:
        return "not asked for"


@dataclass(frozen=True)
class Agreement:
    """The values that all ranks agree on for a step."""

    batch_hash: str
    """The hash of the samples of the global batch; it does not depend on the number of ranks."""
    skipped_samples: int
    """Skipped samples of the global batch."""
    stop: bool
    """Whether this is the last step: a rank was asked to stop, or has no batch."""
    save: int
    """The levels that are due to save after the step, by rank 0's clock."""
    cut: int = 0
    """The tokens after which the run ends, by rank 0's clock; 0: the end does not change."""


def run_loop(
    *,
    config: RunConfig,
    engine: Trainable,
    batches: Iterator[Batch],
    state: RunState,
    length: RunLength,
    samples_counted_here: bool,
    clock: StepClock,
    record: Recorder,
    evaluate: Evaluator,
    checkpoints: Checkpoints,
    stop_requested: Callable[[], bool],
    control: dist.ProcessGroup,
    profiler: StepProfiler | None = None,
    time_limit: TimeLimit = NO_LIMIT,
    last_step: int | None = None,
    begin_step: Callable[[int], None] = lambda step: None,
    is_validated: bool = True,
) -> tuple[RunState, str]:
    """Train for the `length` of the run, or until asked to stop; returns the state and `finished` or `stopped`.

    `is_validated`: whether the validation that is due at `state` was recorded; if not, it comes first.
    `last_step`: the loop ends with this step instead; learning rates are still those of the whole length.
    `samples_counted_here`: true on one of the ranks that share a batch, so that the batch's hash counts it once.
    `begin_step` is called before each step, when the batch of the next step is loaded.
    """
    every_evaluation = config.evaluation.every_steps
    began, step_seconds = time.monotonic() - state.train_seconds, 0.0
    state = state.with_batches_of(length.step_tokens)

    def is_over(at: RunState) -> bool:
        return length.is_over(at) if last_step is None else at.step >= last_step

    def cut(at: RunState, seconds: float) -> int:
        return time_limit.cut(at, time.monotonic() - began + seconds)

    def shortened(at: RunState, agreed: Agreement) -> RunState:
        # The ranks have agreed to continue, so the run is never cut to the steps it has done.
        if agreed.cut <= at.tokens or (agreed.cut, length.train.max_minutes) == (at.cut_tokens, at.cut_minutes):
            return at
        at = replace(at, cut_tokens=agreed.cut, cut_minutes=length.train.max_minutes)
        record("length", at.step, length_record(at, length))
        return at

    def validate(at: RunState) -> bool:
        """Validate and record; returns False if a rank was asked to stop."""
        with clock.outside():
            limit = config.evaluation.final_max_samples if is_over(at) else config.evaluation.max_samples
            values = evaluate(max_samples=limit)
            if values is not None:
                record("validation", at.step, values)
        return values is not None

    def is_validation_due(at: RunState) -> bool:
        return is_over(at) or (every_evaluation > 0 and at.step > 0 and at.step % every_evaluation == 0)

    if not is_validated and is_validation_due(state) and not validate(state):
        return state, "stopped"
    if is_over(state):
        return state, "finished"
    with clock.part("data"):
        batch = next(batches, None)
    agreed = agree(None, samples_counted_here, batch is None or stop_requested(), 0, control, cut(state, 0.0))
    if agreed.stop or batch is None:
        return state, "stopped"
    state = shortened(state, agreed)
    while True:
        step = state.step + 1
        if profiler is not None:
            profiler.begin_step(step)
        batch_tokens = (batch.next_position - batch.position) * config.model.seq_length
        after = replace(state, step=step, position=batch.next_position, tokens=state.tokens + batch_tokens)
        is_last = is_over(after)
        with clock.part("data"):
            upcoming = None if is_last else next(batches, None)
        agreement = begin_agreement(
            batch,
            samples_counted_here,
            stop_requested() or (upcoming is None and not is_last),
            checkpoints.due_by_clock(),
            control,
            0 if is_last else cut(after, step_seconds),
        )
        begin_step(step)
        lr = length.lr(state)
        result = engine.train_step(batch.tokens, lr, batch.mask)
        clock.add("forward_backward", result.seconds_forward_backward)
        clock.add("optimizer", result.seconds_optimizer)
        step_seconds = result.seconds_forward_backward + result.seconds_optimizer
        agreed = agreement.wait()
        refuse_empty_batch(step, batch, agreed, checkpoints.last_name)
        state = replace(
            count_faults(after, result, config.engine),
            skipped_samples=after.skipped_samples + agreed.skipped_samples,
            train_seconds=time.monotonic() - began,
        )
        clock.end_step(batch_tokens)
        if profiler is not None:
            with clock.outside():
                profiler.end_step(step)
        refuse_divergence(state, result, batch, config, checkpoints.last_name)

        if step % config.tracking.log_every_steps == 0 or is_last or not result.applied:
            record("train", step, train_record(state, result, lr, batch, agreed) | clock.take() | memory_use())
        state = shortened(state, agreed)
        stops = agreed.stop or (upcoming is None and not is_last)  # without a batch this rank asked for the stop
        if not is_last and not stops and is_validation_due(state):
            stops = not validate(state)
        with clock.outside():
            checkpoints.after_step(state, agreed.save, last=is_last or stops)
        if is_last or stops or upcoming is None:
            break
        batch = upcoming
    if stops or not validate(state):
        return state, "stopped"
    return state, "finished"


class PendingAgreement:
    """An all-reduce of the ranks that is running."""

    def __init__(self, batch: Batch | None, shared: torch.Tensor, work: dist.Work) -> None:
        self._batch, self._shared, self._work = batch, shared, work

    def wait(self) -> Agreement:
        """Raises RunError if ranks that share a batch have different ones."""
        self._work.wait()
        # Sums mod 2**64: int64 addition wraps around.
        total, skipped, num_counted, total_of_all, stops, sum_of_ranks, due, end = self._shared.tolist()
        is_shared = (total * (dist.get_world_size() // num_counted) - total_of_all) % 2**64 == 0
        batch = self._batch
        if batch is not None and not is_shared:
            raise RunError(
                f"batch of samples {batch.position} to {batch.next_position - 1}: ranks of one group read "
                "different data: a shard is corrupt on some nodes",
                "the rank logs name the shard; restore it there",
            )
        if dist.get_rank() == 0 and 0 < stops < dist.get_world_size():  # else rank 0 or every rank logged its signal
            which = f"rank {sum_of_ranks} was" if stops == 1 else f"{stops} ranks were"
            log.warning("%s asked by a signal to stop", which)
        return Agreement(batch_hash=f"{total % 2**64:016x}", skipped_samples=skipped, stop=stops > 0, save=due, cut=end)


def begin_agreement(
    batch: Batch | None, counted_here: bool, stop: bool, save: int, control: dist.ProcessGroup, cut: int = 0
) -> PendingAgreement:
    """Start one small all-reduce on the CPU: a rank that has to stop stops all, rank 0's clock saves and cuts the run.

    It runs while this rank computes.
    """
    digest, skipped_here = (batch.digest, batch.num_skipped) if batch is not None else (0, 0)
    of_batch = (digest, skipped_here, 1) if counted_here else (0, 0, 0)
    rank = dist.get_rank()
    by_clock = (save, cut) if rank == 0 else (0, 0)
    asked = (1, rank) if stop else (0, 0)
    shared = torch.tensor([*of_batch, digest, *asked, *by_clock], dtype=torch.int64)
    work = dist.all_reduce(shared, group=control, async_op=True)
    assert work is not None, "this rank is in the group"
    return PendingAgreement(batch, shared, work)


def agree(
    batch: Batch | None, counted_here: bool, stop: bool, save: int, control: dist.ProcessGroup, cut: int = 0
) -> Agreement:
    """Like `begin_agreement`, but waits for the result."""
    return begin_agreement(batch, counted_here, stop, save, control, cut).wait()


def refuse_empty_batch(step: int, batch: Batch, agreed: Agreement, last_checkpoint: Callable[[], str]) -> None:
    """Raise RunError if all samples of the global batch were skipped: the step had nothing to learn from."""
    if agreed.skipped_samples == batch.next_position - batch.position:
        raise RunError(
            f"step {step}: none of samples {batch.position} to {batch.next_position - 1} counts: all are in bad "
            "shards, named in the logs of the ranks (data.on_bad_shard=skip); last "
            f"checkpoint: {last_checkpoint()}",
            "restore the shards, then run the same command to resume",
        )


def train_record(
    state: RunState, result: StepResult, lr: float, batch: Batch, agreed: Agreement
) -> dict[str, float | int | str]:
    """The record of one step, without speed and memory."""
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": lr,
        "tokens": state.tokens,
        "samples": state.position,
        "batch_samples": batch.next_position - batch.position,
        "epoch": batch.epoch,
        "loss_scale": result.loss_scale,
        "bad_steps": state.bad_steps,
        "overflow_steps": state.overflow_steps,
        "skipped_samples": state.skipped_samples,
        "batch_hash": agreed.batch_hash,
        **_cut_of(state),
    }


def length_record(state: RunState, length: RunLength) -> dict[str, float | int | str]:
    """The record of a cut by train.max_minutes."""
    return {**_cut_of(state), "end_step": length.end_step(state), "train_seconds": state.train_seconds}


def _cut_of(state: RunState) -> dict[str, float | int | str]:
    if state.cut_tokens is None or state.cut_minutes is None:
        return {}
    return {"cut_tokens": state.cut_tokens, "cut_minutes": state.cut_minutes}

"""The training loop: step, record, evaluate, save, stop, in that order and in plain sight.

The last step of an attempt is saved before anything is evaluated: what goes wrong in a validation costs no step.

While a step is computed the ranks agree on what comes after it, so that no rank waits for a message.
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
    """Takes records; on ranks other than the main one it does nothing."""

    def __call__(self, kind: str, step: int, values: Values) -> None: ...


class Evaluator(Protocol):
    """Measures the loss on held-out text; called on all ranks together. None: it was left off, as a rank is to stop."""

    def __call__(self, *, max_samples: int | None) -> Values | None: ...


class Checkpoints(Protocol):
    """Decides when to save, and saves."""

    def due_by_clock(self) -> int:
        """What should be saved now, as far as this rank's clock says."""

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        """Save if it is time; called on all ranks with the same values. The `last` one is on the disk on return."""

    def last_name(self) -> str:
        """The newest one, for messages."""


class NothingSaved:
    """Of steps that are only measured or compared."""

    def due_by_clock(self) -> int:
        return 0

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        pass

    def last_name(self) -> str:
        return "not asked for"


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of a step when it is done."""

    batch_hash: str
    """Names the samples of the global batch, whatever the number of ranks."""
    skipped_samples: int
    """Of the global batch."""
    stop: bool
    """No further step: a rank was asked to stop, or has no batch."""
    save: int
    """What rank 0's clock says is due after the step."""
    cut: int = 0
    """The tokens after which the run ends, as rank 0's clock says; 0: no sooner than was known."""


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

    `is_validated`: whether the validation that is due at `state` was recorded; else it comes first.
    `last_step`: the loop ends with this step instead; its learning rates are still those of the whole length.
    `samples_counted_here`: true on one of the ranks that share a batch, so that the batch's hash counts it once.
    `begin_step` is called before each step; the next step's batch is there by then.
    """
    every_evaluation = config.evaluation.every_steps
    began, step_seconds = time.monotonic() - state.train_seconds, 0.0
    state = state.with_batches_of(length.step_tokens)

    def is_over(at: RunState) -> bool:
        return length.is_over(at) if last_step is None else at.step >= last_step

    def cut(at: RunState, seconds: float) -> int:
        return time_limit.cut(at, time.monotonic() - began + seconds)

    def shortened(at: RunState, agreed: Agreement) -> RunState:
        # The ranks have agreed to continue by now, so it is never cut to what it has done.
        if agreed.cut <= at.tokens or (agreed.cut, length.train.max_minutes) == (at.cut_tokens, at.cut_minutes):
            return at
        at = replace(at, cut_tokens=agreed.cut, cut_minutes=length.train.max_minutes)
        record("length", at.step, length_record(at, length))
        return at

    def validate(at: RunState) -> bool:
        """Whether it came to its end."""
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
    """A message of the ranks that is on its way."""

    def __init__(self, batch: Batch | None, shared: torch.Tensor, work: dist.Work) -> None:
        self._batch, self._shared, self._work = batch, shared, work

    def wait(self) -> Agreement:
        """Raises RunError where ranks that share a batch were given different ones."""
        self._work.wait()
        # Sums mod 2**64: int64 addition wraps around.
        total, skipped, num_counted, total_of_all, stops, sum_of_ranks, due, end = self._shared.tolist()
        is_shared = (total * (dist.get_world_size() // num_counted) - total_of_all) % 2**64 == 0
        batch = self._batch
        if batch is not None and not is_shared:
            raise RunError(
                f"batch of samples {batch.position} to {batch.next_position - 1}: ranks that share it read different "
                "ones; a shard is bad on some nodes and whole on others: the logs of the ranks name it; restore it "
                "there"
            )
        if dist.get_rank() == 0 and 0 < stops < dist.get_world_size():  # else the line of the signal itself says it
            which = f"rank {sum_of_ranks} was" if stops == 1 else f"{stops} ranks were"
            log.warning("%s asked by a signal to stop", which)
        return Agreement(batch_hash=f"{total % 2**64:016x}", skipped_samples=skipped, stop=stops > 0, save=due, cut=end)


def begin_agreement(
    batch: Batch | None, counted_here: bool, stop: bool, save: int, control: dist.ProcessGroup, cut: int = 0
) -> PendingAgreement:
    """One small message among all ranks, on the CPU: a rank that has to stop stops all, rank 0's clock saves and cuts
    the run. It is on its way while this rank computes.
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
    """The same, waited for."""
    return begin_agreement(batch, counted_here, stop, save, control, cut).wait()


def refuse_empty_batch(step: int, batch: Batch, agreed: Agreement, last_checkpoint: Callable[[], str]) -> None:
    """Raise RunError where all samples of the global batch were skipped: there was nothing to learn from."""
    if agreed.skipped_samples == batch.next_position - batch.position:
        raise RunError(
            f"step {step}: none of samples {batch.position} to {batch.next_position - 1} counts: all are in bad "
            "shards, named in the logs of the ranks (data.on_bad_shard=skip); nothing is learned of it; last "
            f"checkpoint: {last_checkpoint()}; restore the shards, and the same command goes on from there"
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

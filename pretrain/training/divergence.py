"""Counts steps that are lost to a NaN or an infinity, and ends a run that loses too many."""

import math
from collections.abc import Callable
from dataclasses import replace

from data_pipeline.stream.loader import Batch
from pretrain.config.engine import EngineConfig
from pretrain.config.errors import TrainingDiverged
from pretrain.config.run import RunConfig
from pretrain.engine.interface import StepResult
from pretrain.run.state import RunState


def count_faults(state: RunState, result: StepResult, engine: EngineConfig) -> RunState:
    """The state with the step counted as bad or as an overflow, if it was one."""
    return replace(
        state,
        bad_steps=state.bad_steps + is_bad(result, engine),
        overflow_steps=state.overflow_steps + is_overflow(result, engine),
    )


def is_overflow(result: StepResult, engine: EngineConfig) -> bool:
    """Whether fp16 gradients overflowed under a finite loss, and a lower loss scale can still help."""
    return (
        engine.precision == "fp16"
        and not result.applied
        and math.isfinite(result.loss)
        and result.loss_scale > engine.loss_scale.minimum
    )


def is_bad(result: StepResult, engine: EngineConfig) -> bool:
    """Whether the loss or the gradient was a NaN or an infinity that a lower loss scale cannot fix."""
    return not math.isfinite(result.loss) or (not result.applied and not is_overflow(result, engine))


def refuse_divergence(
    state: RunState, result: StepResult, batch: Batch, config: RunConfig, last_checkpoint: Callable[[], str]
) -> None:
    """Raise TrainingDiverged if more steps went bad than allowed, or a bad one was applied."""
    applied_nan = result.applied and not math.isfinite(result.loss)
    allowed = config.train.max_bad_steps
    if state.bad_steps > allowed or applied_nan:
        raise TrainingDiverged(
            f"step {state.step}: loss {result.loss}, gradient norm {result.grad_norm}"
            f"{_at_least_scale(result, config)}; "
            f"batch of samples {batch.position} to {batch.next_position - 1}; {state.bad_steps} bad steps so far, "
            f"train.max_bad_steps={allowed} allowed; last good checkpoint: {last_checkpoint()}",
            "lower optim.lr, or look at the text of that batch",
            f"to continue past bad steps, set train.max_bad_steps={max(state.bad_steps, allowed + 1)} or more",
            step=state.step,
        )


def _at_least_scale(result: StepResult, config: RunConfig) -> str:
    least = config.engine.loss_scale.minimum
    if config.engine.precision != "fp16" or result.applied or result.loss_scale > least:
        return ""
    return f", at the least loss scale (engine.loss_scale.minimum={least})"

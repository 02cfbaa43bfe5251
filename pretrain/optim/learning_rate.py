"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from pretrain.config.optim import LrScheduleConfig


def lr_at(step: int, *, peak: float, schedule: LrScheduleConfig, total_steps: int, tokens_per_step: int) -> float:
    """Learning rate of `step` (the first is 1), after `step - 1` steps are done.

    Warmup rises linearly and reaches the peak at its last step; then `schedule.name` falls to
    `peak * final_ratio` at `total_steps`. Cosine: Loshchilov and Hutter 2017; wsd: Hu et al. 2024 (MiniCPM), with a
    linear decay over the last `decay_fraction` of the training length.
    """
    warmup = warmup_steps(schedule, total_steps, tokens_per_step)
    if step <= warmup:
        return peak * step / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "wsd":
        start = max(warmup, total_steps - round(schedule.decay_fraction * total_steps))
    else:
        start = warmup
    done = min(1.0, max(0.0, (step - start) / max(1, total_steps - start)))
    share = 0.5 * (1 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1 - done
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * share)


def warmup_steps(schedule: LrScheduleConfig, total_steps: int, tokens_per_step: int) -> int:
    """Warmup in steps: as given, from tokens (rounded up), or a twentieth of the run."""
    if schedule.warmup_tokens is not None:
        return -(-schedule.warmup_tokens // tokens_per_step)
    return total_steps // 20 if schedule.warmup_steps is None else schedule.warmup_steps

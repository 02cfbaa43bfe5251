"""The learning rate as a pure function of training progress, so that a checkpoint does not store it."""

import math

from pretrain.config.optim import LrScheduleConfig


def lr_at(done: float, *, peak: float, schedule: LrScheduleConfig, warmup: float, end: float) -> float:
    """The learning rate of the step at whose end `done` of `end` samples are trained on, the first `warmup` as warmup.

    All three may also count another unit, such as steps or tokens. Warmup rises linearly to the peak. After it the
    schedule decays to `peak * final_ratio` at `end`. Cosine: Loshchilov and Hutter 2017; wsd: Hu et al. 2024 (MiniCPM),
    with a linear decay over the last `decay_fraction` of the training length.
    """
    if done <= warmup:
        return peak * done / warmup
    if schedule.name == "constant":
        return peak
    # Rounded to whole units, so that the decay starts with a step.
    start = max(warmup, end - round(schedule.decay_fraction * end)) if schedule.name == "wsd" else warmup
    share_done = min(1.0, max(0.0, (done - start) / max(1, end - start)))
    share = 0.5 * (1 + math.cos(math.pi * share_done)) if schedule.name == "cosine" else 1 - share_done
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * share)

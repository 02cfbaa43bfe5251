"""The time of a pipeline schedule, by playing the passes of every stage in their order.

1F1B, and Megatron's interleaved order (Narayanan et al. 2021). A stage's passes run one after the other. A pass begins
when its input has arrived; receiving it takes time of the stage, because transfers are not overlapped.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

SIMULATED_ROUNDS = 3
"""Micro-batches that are played, in multiples of the stages. Later ones repeat the period of the slowest stage."""

LONG_PIPELINE = 32
"""Pipelines of more stages are played for two rounds, which keeps the time of a plan short."""


@dataclass(frozen=True)
class Schedule:
    """Seconds of each pass by stage and chunk, and of a transfer between neighbouring stages."""

    forward: Sequence[Sequence[float]]
    """By stage, then by its chunks in the order of the data."""
    backward: Sequence[Sequence[float]]
    transfer: float
    micro_batches: int


def seconds_of(schedule: Schedule) -> float:
    """From the first forward pass to the end of the last backward pass."""
    forward, backward = (tuple(map(tuple, stages)) for stages in (schedule.forward, schedule.backward))
    return _seconds(Schedule(forward, backward, schedule.transfer, schedule.micro_batches), SIMULATED_ROUNDS)


@functools.lru_cache(maxsize=1 << 12)
def _seconds(schedule: Schedule, rounds: int) -> float:
    """The same of sequences that can be compared; settings that differ outside the passes share it."""
    stages, number = len(schedule.forward), schedule.micro_batches
    chunks = len(schedule.forward[0])
    if stages == 1:
        return number * (sum(schedule.forward[0]) + sum(schedule.backward[0]))
    played = min(number, (rounds if stages <= LONG_PIPELINE else 2) * stages)
    if chunks > 1:
        played = -(-played // stages) * stages  # the interleaved order takes them in groups
    return _play(schedule, played, chunks) + (number - played) * max(busy_seconds(schedule))


def busy_seconds(schedule: Schedule) -> list[float]:
    """Seconds in which each stage works on one micro-batch, transfers included."""
    stages, chunks = len(schedule.forward), len(schedule.forward[0])
    received = 2 * chunks * schedule.transfer
    if stages == 1:
        return [sum(schedule.forward[0]) + sum(schedule.backward[0])]
    return [
        sum(schedule.forward[stage])
        + sum(schedule.backward[stage])
        + received
        - schedule.transfer * ((stage == 0) + (stage == stages - 1))
        for stage in range(stages)
    ]


Pass = tuple[bool, int, int]
"""Whether it is a backward pass, its chunk in the order of the data over all stages, its micro-batch."""


def order_of(stage: int, stages: int, chunks: int, micro_batches: int) -> list[Pass]:
    """The passes of one stage in the order in which it runs them."""
    total = micro_batches * chunks
    if chunks == 1:
        warm_up = min(stages - stage - 1, total)
    else:
        warm_up = min(2 * (stages - stage - 1) + (chunks - 1) * stages, total)
        if micro_batches == stages:
            warm_up = total
    forward = [_turn(turn, stage, stages, chunks, False) for turn in range(total)]
    backward = [_turn(turn, stage, stages, chunks, True) for turn in range(total)]
    passes = forward[:warm_up]
    for ahead, behind in zip(forward[warm_up:], backward, strict=False):
        passes += [ahead, behind]
    return passes + backward[total - warm_up :]


def _turn(turn: int, stage: int, stages: int, chunks: int, is_backward: bool) -> Pass:
    """`stages` micro-batches go through a chunk before the next chunk takes them."""
    if chunks == 1:
        return is_backward, stage, turn
    group, place = divmod(turn, stages * chunks)
    chunk, micro_batch = divmod(place, stages)
    if is_backward:
        chunk = chunks - 1 - chunk
    return is_backward, chunk * stages + stage, group * stages + micro_batch


def _play(schedule: Schedule, micro_batches: int, chunks: int) -> float:
    stages, transfer = len(schedule.forward), schedule.transfer
    last = stages * chunks - 1
    ended: dict[Pass, float] = {}
    orders = [order_of(stage, stages, chunks, micro_batches) for stage in range(stages)]
    next_of, free = [0] * stages, [0.0] * stages
    waiting: dict[Pass, int] = {}
    ready = list(range(stages))
    while ready:
        stage = ready.pop()
        order, now = orders[stage], free[stage]
        index, length = next_of[stage], len(order)
        while index < length:
            is_backward, chunk, micro_batch = this = order[index]
            needed: Pass | None
            if is_backward:
                needed = (True, chunk + 1, micro_batch) if chunk < last else (False, chunk, micro_batch)
                seconds = schedule.backward[stage][chunk // stages]
            else:
                needed = (False, chunk - 1, micro_batch) if chunk else None
                seconds = schedule.forward[stage][chunk // stages]
            if needed is not None:
                arrived = ended.get(needed)
                if arrived is None:
                    waiting[needed] = stage
                    break
                if needed[1] != chunk:
                    seconds += transfer
                now = max(now, arrived)
            now += seconds
            ended[this] = now
            if this in waiting:
                ready.append(waiting.pop(this))
            index += 1
        next_of[stage], free[stage] = index, now
    assert all(index == len(order) for index, order in zip(next_of, orders, strict=True))
    return max(free)

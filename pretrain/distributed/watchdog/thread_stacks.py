"""The stacks of this process's threads, and whether they move."""

import re
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType

from pretrain.distributed.watchdog.rank_status import RankStatus
from pretrain.outcome.failure import Stage

MAX_FRAMES = 10
"""The number of innermost calls that are shown."""
LONGEST_LOOK_SECONDS = 2.0


def status(
    frames: traceback.StackSummary, waits: bool, still_seconds: float, stage: Stage, step: int | None
) -> RankStatus:
    """The status of a thread with this stack, innermost call last."""
    stack = "".join(traceback.format_list(frames[-MAX_FRAMES:]))
    return RankStatus(waits, where(frames), still_seconds, stage, step, stack)


def status_now(thread: threading.Thread, still_seconds: float, stage: Stage, step: int | None) -> RankStatus:
    """The status of `thread`, asked from another one."""
    stacks = {ident: traceback.extract_stack(frame) for ident, frame in sys._current_frames().items()}
    stacks.pop(threading.get_ident(), None)
    asked = stacks.pop(thread.ident or 0, traceback.StackSummary())
    waits = waits_for_others(asked)
    if asked and asked[-1].name == "_engine_run_backward":  # a GPU's backward pass runs on separate threads
        waits = waits or any(waits_for_others(stack) for stack in stacks.values())
    return status(asked, waits, still_seconds, stage, step)


def waits_for_others(frames: Sequence[traceback.FrameSummary]) -> bool:
    """Whether a stack, innermost call last, ends in a collective, in a wait for one, or in a wait for the GPU."""
    if not frames:
        return False
    innermost = [frame.filename.replace("\\", "/") for frame in frames[-WRAPPERS:]]
    return any(_COLLECTIVE_FILE.search(name) for name in innermost) or bool(_WAIT_CALL.search(frames[-1].line or ""))


def where(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost call, and the line of this program that led to it."""
    if not frames:
        return "nowhere"
    ours = [frame for frame in frames if _OUR_FILE.search(frame.filename)]
    innermost = _at(frames[-1])
    return innermost if not ours or ours[-1] is frames[-1] else f"{innermost}, called from {_at(ours[-1])}"


def _at(frame: traceback.FrameSummary) -> str:
    name = "/".join(frame.filename.replace("\\", "/").split("/")[-3:])
    return f"{name}:{frame.lineno} {frame.name}"


class StillMeter:
    """How long a thread has not moved. Time in which the whole process was stopped does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._seen: tuple[tuple[int, int], ...] = ()
        self._looked = time.monotonic()

    def reset(self) -> None:
        self.seconds = 0.0

    def look(self, thread: threading.Thread) -> None:
        """Sample the thread. A running thread is hardly ever seen twice in a row at one place of the same calls."""
        now = time.monotonic()
        seen = _position(sys._current_frames().get(thread.ident or 0))
        self.seconds = self.seconds + min(now - self._looked, LONGEST_LOOK_SECONDS) if seen == self._seen else 0.0
        self._seen, self._looked = seen, now


def _position(frame: FrameType | None) -> tuple[tuple[int, int], ...]:
    position = []
    while frame is not None:
        position.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(position)


def all_stacks() -> str:
    """The stacks of all threads except the calling one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


WRAPPERS = 4
"""The number of calls that may be between a collective and the C++ that waits: loggers, conversions."""

_OUR_FILE = re.compile(r"[\\/]pretrain[\\/](?!distributed[\\/]watchdog[\\/])")
_COLLECTIVE_FILE = re.compile(
    r"torch/distributed/(distributed_c10d|c10d_logger|rendezvous)\.py$"
    r"|deepspeed/comm/|megatron/core/pipeline_parallel/p2p_communication\.py$"
)
_WAIT_CALL = re.compile(r"\.(wait|synchronize|item|tolist|cpu)\(")

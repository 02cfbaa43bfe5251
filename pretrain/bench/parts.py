"""Assigns each interval of a profiler trace to a part of the step."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["matrix products", "attention", "elementwise and norms", "communication", "optimizer", "data", "idle"]

UPDATE_MARK = "update begins"
_STEP_MARK = re.compile(r"step \d+")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")

# Kernels and operators by name; the first match counts, and names without a match are elementwise.
_KINDS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    # Inductor names a kernel after all operators it fuses, also products and attention; except templates.
    ("elementwise and norms", re.compile(r"^triton_(?!tem_)")),
    ("attention", re.compile(r"^triton_tem_.*flex_attention")),
    ("matrix products", re.compile(r"^triton_tem_")),
    ("communication", re.compile(r"nccl|c10d::|gloo|rccl", re.I)),
    ("data", re.compile(r"Memcpy HtoD")),
    # The last two begin and end cuDNN's backward pass.
    ("attention", re.compile(r"flash|fmha|attention|attn|sdpa|compute_dot_do_o|convert_dq", re.I)),
    (
        "matrix products",
        re.compile(
            r"gemm|gemv|matmul|aten::(_?addmm|mm|bmm|baddbmm|linear|_scaled_mm)\b|_(add|b|badd)?mm(_|$)|nvjet|cutlass"
            r"|splitk|wgmma|Cijk_",
            re.I,
        ),
    ),
)


Event = Mapping[str, Any]
Span = tuple[float, float]


@dataclass(frozen=True)
class PartTimes:
    """One profiled step: that of median length, as the first one includes the start of profiling."""

    seconds: Mapping[Part, float]
    """Seconds by part; at each moment one part counts."""
    step_seconds: float
    """The whole profiled step; profiling makes it longer."""
    on_gpu: bool


@dataclass(frozen=True)
class _Interval:
    began: float
    ended: float
    part: Part


def part_of(name: str) -> Part:
    """The part of a kernel or operator, from its name only."""
    return next((part for part, pattern in _KINDS if pattern.search(name)), "elementwise and norms")


def part_times(trace: Mapping[str, Any], *, on_gpu: bool) -> PartTimes:
    """Time by part from a Chrome trace whose steps and updates are marked.

    On a GPU kernels count. Those launched after the mark of the update belong to the optimizer, and communication
    counts only while nothing else runs. On a CPU the operators of the training thread count, each without those that
    it calls.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    marks = [event for event in events if event.get("cat") == "user_annotation"]
    steps = sorted((mark for mark in marks if _STEP_MARK.fullmatch(mark["name"])), key=lambda mark: mark["dur"])
    step = steps[(len(steps) - 1) // 2]
    span = step["ts"], step["ts"] + step["dur"]
    updates = [mark["ts"] for mark in marks if mark["name"] == UPDATE_MARK and span[0] <= mark["ts"] <= span[1]]
    update = min(updates, default=span[1])
    if on_gpu:
        seconds = _sweep(list(_kernels(events, span, update)), _exposed)
    else:
        seconds = _sweep(list(_operators(events, span, update, step["tid"])), _innermost)
    return PartTimes({part: value / 1e6 for part, value in seconds.items()}, step["dur"] / 1e6, on_gpu)


def _kernels(events: Sequence[Event], span: Span, update: float) -> Iterator[_Interval]:
    launched: dict[Any, float] = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    for event in events:
        if event.get("cat") in _ON_GPU:
            correlation = event.get("args", {}).get("correlation")
            at = launched[correlation] if correlation in launched else float(event["ts"])
            if span[0] <= at <= span[1]:
                yield _interval(event, at, update)


def _operators(events: Sequence[Event], span: Span, update: float, thread: Any) -> Iterator[_Interval]:
    for event in events:
        if event.get("cat") == "cpu_op" and event["tid"] == thread and span[0] <= event["ts"] <= span[1]:
            yield _interval(event, event["ts"], update)


def _interval(event: Event, launched_at: float, update: float) -> _Interval:
    part = part_of(event["name"])
    if launched_at >= update and part != "communication":
        part = "optimizer"
    return _Interval(event["ts"], event["ts"] + event["dur"], part)


def _sweep(intervals: list[_Interval], choose: Callable[[Sequence[_Interval]], Part]) -> dict[Part, float]:
    """Seconds by part: at each moment `choose` picks the part from all running intervals, sorted by their start."""
    intervals = [interval for interval in intervals if interval.ended > interval.began]
    intervals.sort(key=lambda interval: (interval.began, -interval.ended))
    ends = sorted(range(len(intervals)), key=lambda number: intervals[number].ended)
    seconds: dict[Part, float] = {}
    running: dict[int, _Interval] = {}
    before, started, over = 0.0, 0, 0
    while over < len(ends):
        ending = started == len(intervals) or intervals[ends[over]].ended <= intervals[started].began
        now = intervals[ends[over]].ended if ending else intervals[started].began
        if running and now > before:
            part = choose(list(running.values()))
            seconds[part] = seconds.get(part, 0.0) + now - before
        before = now
        if ending:
            del running[ends[over]]
            over += 1
        else:
            running[started] = intervals[started]
            started += 1
    return seconds


def _exposed(running: Sequence[_Interval]) -> Part:
    """The part of parallel kernels: communication counts only if nothing else runs."""
    return next((interval.part for interval in reversed(running) if interval.part != "communication"), "communication")


def _innermost(running: Sequence[_Interval]) -> Part:
    """The part that time in nested operators counts for: attention if any of them is, otherwise the innermost."""
    return "attention" if any(interval.part == "attention" for interval in running) else running[-1].part

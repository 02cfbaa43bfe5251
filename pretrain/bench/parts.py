"""Which part of a step each stretch of a profiler's trace belongs to."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["matrix products", "attention", "elementwise and norms", "communication", "optimizer", "data", "idle"]

UPDATE_MARK = "update begins"
_STEP_MARK = re.compile(r"step \d+")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")

# Kernels and operators by name, the first match counts; what matches none is elementwise.
_KINDS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    ("communication", re.compile(r"nccl|c10d::|gloo|rccl", re.I)),
    ("data", re.compile(r"Memcpy HtoD")),
    ("attention", re.compile(r"flash|fmha|attention|attn|sdpa", re.I)),
    (
        "matrix products",
        re.compile(
            r"gemm|gemv|matmul|aten::(_?addmm|mm|bmm|baddbmm|linear|_scaled_mm)\b|_(add|b|badd)?mm(_|$)|nvjet|cutlass"
            r"|splitk|wgmma|Cijk_",
            re.I,
        ),
    ),
)


@dataclass(frozen=True)
class PartTimes:
    """Of one step, the mean of those profiled."""

    seconds: Mapping[Part, float]
    """By part, of what ran; at each moment one part counts."""
    step_seconds: float
    """The profiled step as a whole, which profiling makes longer."""
    on_gpu: bool


@dataclass(frozen=True)
class _Stretch:
    began: float
    ended: float
    part: Part


def part_of(name: str) -> Part:
    """By the name of a kernel or an operator alone."""
    return next((part for part, pattern in _KINDS if pattern.search(name)), "elementwise and norms")


def part_times(trace: Mapping[str, Any]) -> PartTimes:
    """Time by part from a Chrome trace whose steps and updates are marked.

    On a GPU its kernels count: those launched after the mark of the update are the optimizer's, and communication only
    where nothing else runs. On a CPU the operators of the thread that trains, each without those within it.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X" and event.get("dur", 0) > 0]
    steps = [event for event in events if _is_mark(event) and _STEP_MARK.fullmatch(event["name"])]
    assert steps, "a trace without a step"
    spans = sorted((step["ts"], step["ts"] + step["dur"]) for step in steps)
    updates = sorted(
        event["ts"]
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and _is_mark(event) and event["name"] == UPDATE_MARK
    )
    on_gpu = any(event.get("cat") == "kernel" for event in events)
    if on_gpu:
        seconds = _sweep(list(_kernels(events, spans, updates)), _exposed)
    else:
        seconds = _sweep(list(_operators(events, spans, updates, steps[0]["tid"])), _innermost)
    number = len(spans)
    whole = sum(ended - began for began, ended in spans)
    return PartTimes({part: value / number / 1e6 for part, value in seconds.items()}, whole / number / 1e6, on_gpu)


def _is_mark(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "user_annotation"


def _kernels(
    events: Sequence[Mapping[str, Any]], spans: Sequence[tuple[float, float]], updates: Sequence[float]
) -> Iterator[_Stretch]:
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    for event in events:
        if event.get("cat") in _ON_GPU:
            at = launched.get(event.get("args", {}).get("correlation"), event["ts"])
            yield _Stretch(event["ts"], event["ts"] + event["dur"], _part_at(event["name"], at, spans, updates))


def _operators(
    events: Sequence[Mapping[str, Any]], spans: Sequence[tuple[float, float]], updates: Sequence[float], thread: Any
) -> Iterator[_Stretch]:
    for event in events:
        if event.get("cat") == "cpu_op" and event["tid"] == thread and _span_at(event["ts"], spans) is not None:
            part = _part_at(event["name"], event["ts"], spans, updates)
            yield _Stretch(event["ts"], event["ts"] + event["dur"], part)


def _part_at(name: str, at: float, spans: Sequence[tuple[float, float]], updates: Sequence[float]) -> Part:
    part, span = part_of(name), _span_at(at, spans)
    in_update = span is not None and any(span[0] <= update <= at for update in updates)
    return "optimizer" if in_update and part != "communication" else part


def _span_at(at: float, spans: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    return next((span for span in spans if span[0] <= at <= span[1]), None)


def _sweep(stretches: list[_Stretch], choose: Callable[[Sequence[_Stretch]], Part]) -> dict[Part, float]:
    """Time by part, each moment given to what is chosen of all that runs, the one begun last at the end."""
    stretches.sort(key=lambda stretch: (stretch.began, -stretch.ended))
    ends = sorted(range(len(stretches)), key=lambda number: stretches[number].ended)
    seconds: dict[Part, float] = {}
    running: dict[int, _Stretch] = {}
    before, begun, over = 0.0, 0, 0
    while over < len(ends):
        ending = begun == len(stretches) or stretches[ends[over]].ended <= stretches[begun].began
        now = stretches[ends[over]].ended if ending else stretches[begun].began
        if running and now > before:
            part = choose(list(running.values()))
            seconds[part] = seconds.get(part, 0.0) + now - before
        before = now
        if ending:
            del running[ends[over]]
            over += 1
        else:
            running[begun] = stretches[begun]
            begun += 1
    return seconds


def _exposed(running: Sequence[_Stretch]) -> Part:
    """Of kernels side by side: communication counts where nothing else runs."""
    return next((stretch.part for stretch in reversed(running) if stretch.part != "communication"), "communication")


def _innermost(running: Sequence[_Stretch]) -> Part:
    """Of operators within each other; whatever attention is made of is attention."""
    return "attention" if any(stretch.part == "attention" for stretch in running) else running[-1].part

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
    # Inductor names its own kernels after all that their tensors come from, products and attention too; but templates.
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
    """One profiled step: that of middle length, since the first one also pays for the start of profiling."""

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


def part_times(trace: Mapping[str, Any], *, on_gpu: bool) -> PartTimes:
    """Time by part from a Chrome trace whose steps and updates are marked.

    On a GPU its kernels count: those launched after the mark of the update are the optimizer's, and communication only
    where nothing else runs. On a CPU the operators of the thread that trains, each without those within it.
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


def _kernels(events: Sequence[Event], span: Span, update: float) -> Iterator[_Stretch]:
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
                yield _stretch(event, at, update)


def _operators(events: Sequence[Event], span: Span, update: float, thread: Any) -> Iterator[_Stretch]:
    for event in events:
        if event.get("cat") == "cpu_op" and event["tid"] == thread and span[0] <= event["ts"] <= span[1]:
            yield _stretch(event, event["ts"], update)


def _stretch(event: Event, asked_for: float, update: float) -> _Stretch:
    part = part_of(event["name"])
    if asked_for >= update and part != "communication":
        part = "optimizer"
    return _Stretch(event["ts"], event["ts"] + event["dur"], part)


def _sweep(stretches: list[_Stretch], choose: Callable[[Sequence[_Stretch]], Part]) -> dict[Part, float]:
    """Time by part, each moment given to what is chosen of all that runs, the one begun last at the end."""
    stretches = [stretch for stretch in stretches if stretch.ended > stretch.began]
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

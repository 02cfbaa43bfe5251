"""The table and the JSON of `pretrain plan --search`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.planner.memory import HEADROOM
from pretrain.planner.plan import GIB
from pretrain.planner.search import Candidate, Search, layout_of, overrides_of, slower_by
from pretrain.planner.time.hardware import Hardware

SHORT = {"per_step": "step", "per_micro_batch": "micro-batch"}
HEAD = ("", "step", "tokens/s", "MFU", "tp", "pp", "vp", "dp", "micro", "ZeRO", "recompute", "GiB", "why not faster")


def search_lines(
    found: Search, asked: RunConfig, world_size: int, hardware: Hardware, gpu_memory: float | None, count: int
) -> list[str]:
    """The best setting of each of the `count` best layouts, with the words that give it; then the configured one."""
    room = "" if gpu_memory is None else f" in {HEADROOM:.0%} of {gpu_memory:g} GiB"
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    layouts = best_of_each_layout(found.candidates)
    lines = [
        f"{asked.model.name} on {ranks} of {hardware.name}, {asked.train.global_batch_size:,} samples in a step:",
        f"{len(found.candidates):,} settings of {len(layouts):,} layouts fit{room}; {found.too_large:,} do not fit, "
        f"{found.illegal:,} are illegal, {found.slower:,} only recompute more",
    ]
    if not layouts:
        lines.append("nothing fits: use more ranks, or engine.offload.optimizer=cpu")
        return [*lines, *_configured_lines(found)]
    best, shown = layouts[0], layouts[:count]
    rows = [_row(number, each, best) for number, each in enumerate(shown, 1)]
    lines += ["", *_aligned([HEAD, *rows]), "", "overrides that give them:"]
    lines += [f"{number:>3}  {' '.join(overrides_of(each, asked)) or '(none)'}" for number, each in enumerate(shown, 1)]
    return [*lines, "", *_configured_lines(found)]


def search_as_json(found: Search, asked: RunConfig) -> dict[str, Any]:
    """All candidates, best first."""
    return {
        "illegal": found.illegal,
        "too_large": found.too_large,
        "slower": found.slower,
        "configured": {
            "place": found.place,
            "fits": found.configured_fits,
            "illegal": found.why_illegal or None,
            "layout": None if found.configured is None else _as_json(found.configured, asked),
        },
        "candidates": [_as_json(each, asked) for each in found.candidates],
    }


def best_of_each_layout(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each split of the model over ranks."""
    first: dict[tuple[object, ...], Candidate] = {}
    for each in candidates:
        first.setdefault(layout_of(each.config), each)
    return list(first.values())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of numbers, and the last column of words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[*map(str.rjust, row[:-1], widths), row[-1]] for row in rows]
    return ["  ".join(row) for row in cells]


def _configured_lines(found: Search) -> list[str]:
    configured = found.configured
    if configured is None:
        return [f"the configured layout is illegal: {found.why_illegal}"]
    if not found.configured_fits:
        return [f"the configured layout does not fit: it needs {configured.peak / GIB:.1f} GiB on a rank"]
    best = found.candidates[0] if found.candidates else configured
    ratio = configured.step.seconds / best.step.seconds
    where = f"the configured layout is number {found.place} of {len(found.candidates):,} settings"
    if found.place == 1:
        return [f"{where}: none is faster"]
    return [f"{where}, {ratio:.2f} times the time of the best: {_reason(configured, best)}"]


def _row(number: int, candidate: Candidate, best: Candidate) -> list[str]:
    config, step = candidate.config, candidate.step
    parallel, engine = config.parallel, config.engine
    tp = f"{parallel.tp}{'+sp' if parallel.sp and parallel.tp > 1 else ''}"
    tp += f" cp {parallel.cp}" if parallel.cp > 1 else ""
    return [
        str(number),
        f"{step.seconds:.3f} s",
        f"{step.tokens_per_second_per_rank:,.0f}",
        f"{step.mfu['6n']:.1%}",
        tp,
        str(parallel.pp),
        str(parallel.vp),
        str(candidate.dp),
        str(config.train.micro_batch_size),
        _zero(candidate),
        engine.recompute.granularity,
        f"{candidate.peak / GIB:.1f}",
        f"limited by {step.limit}" if candidate is best else _reason(candidate, best),
    ]


def _zero(candidate: Candidate) -> str:
    stage, modes = candidate.config.engine.zero_stage, candidate.modes
    if stage < 2:
        return str(stage)
    when = modes.param_gather if stage == 3 else modes.grad_reduction
    return f"{stage} per {SHORT[when]}"


def _reason(candidate: Candidate, best: Candidate) -> str:
    """The parts that take longer than in the best layout."""
    longer = slower_by(candidate, best)
    if not longer:
        return "as fast"
    again = candidate.config.engine.recompute.granularity != "none"
    more = [f"{name} +{seconds:.3f} s" for name, seconds in longer.items()]
    return ", ".join(more) + (" (recomputes)" if again and "matrix products" in longer else "")


def _as_json(candidate: Candidate, asked: RunConfig) -> dict[str, Any]:
    config = candidate.config
    return {
        "layout": {**dataclasses.asdict(config.parallel), "dp": candidate.dp},
        "micro_batch_size": config.train.micro_batch_size,
        "zero_stage": config.engine.zero_stage,
        "modes": dataclasses.asdict(candidate.modes),
        "recompute": dataclasses.asdict(config.engine.recompute),
        "peak_bytes": candidate.peak,
        "seconds_step": candidate.step.seconds,
        "seconds_low": candidate.step.low,
        "seconds_high": candidate.step.high,
        "seconds_by_part": dict(candidate.step.parts),
        "tokens_per_second": candidate.step.tokens_per_second,
        "mfu_6n": candidate.step.mfu["6n"],
        "overrides": overrides_of(candidate, asked),
    }

"""A dry run as text, and as values for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pretrain.pretend.dry_run import DryRun, StageRun
from pretrain.pretend.measured import Traffic

MIB = 2**20


def as_text(done: DryRun) -> str:
    config, parallel = done.config, done.config.parallel
    lines = [
        f"dry run of {config.model.name} on {done.world_size:,} ranks: tp {parallel.tp}, pp {parallel.pp}, "
        f"vp {parallel.vp}, ZeRO-{config.engine.zero_stage} {config.engine.precision}; one rank of each distinct stage",
        f"vocabulary of {done.vocab_size:,} ({done.source})",
        f"engine.grad_reduction: {done.modes.grad_reduction}, engine.param_gather: {done.modes.param_gather}, "
        f"train.micro_batch_size: {config.train.micro_batch_size}",
    ]
    for stage in done.stages:
        lines += ["", *_stage(stage)]
    return "\n".join([*lines, "", *(f"note: {note}" for note in done.notes), *_end(done)]) + "\n"


def as_json(done: DryRun) -> dict[str, Any]:
    config = done.config
    return {
        "model": config.model.name,
        "world_size": done.world_size,
        "layout": {"tp": config.parallel.tp, "pp": config.parallel.pp, "vp": config.parallel.vp},
        "vocab_size": done.vocab_size,
        "micro_batch_size": config.train.micro_batch_size,
        "modes": asdict(done.modes),
        "stages": [
            {
                "stage": run.stages.first,
                "stands_for": list(run.stages.others),
                "rank": run.rank,
                "memory": {name: {"measured": m, "planned": p} for name, m, p in memory_rows(run)},
                "elements": {"measured": run.measured.elements, "planned": run.planned_elements},
                "traffic": [asdict(item) | {"received": item.received} for item in run.step.traffic],
                "data_parallel_received": {name: {"measured": m, "planned": p} for name, m, p in traffic_rows(run)},
                "traffic_at_start": [asdict(item) for item in run.measured.traffic_start],
                "host_waits": run.step.waits,
                "operations": run.step.operations,
                "start_seconds": run.measured.seconds,
                "groups": [{"name": name, "ranks": ranks} for name, ranks in run.measured.groups],
                "groups_made": run.measured.groups_made,
                "steps_run": [asdict(step) | {"traffic": len(step.traffic)} for step in run.measured.steps],
                "resident_bytes": run.measured.resident,
            }
            for run in done.stages
        ],
        "notes": list(done.notes),
        "seconds": done.seconds,
        "seconds_imports": done.seconds_imports,
    }


def memory_rows(run: StageRun) -> list[tuple[str, int, int | None]]:
    """Name, measured and planned bytes: by part, then by moment. None: the plan has no such number."""
    measured, step, planned = run.measured, run.step, run.planned
    offloaded = planned.host + planned.disk > 0
    rows: list[tuple[str, int, int | None]] = []
    if not offloaded:  # else the engine's own count has parts that are on the host
        rows += [
            ("parameters", measured.parameters, planned.parameters),
            ("master weights", measured.master_weights, planned.master_weights),
            ("Adam's moments", measured.moments, planned.moments),
        ]
        if measured.gradients:  # else they are freed after each update
            rows.append(("gradients", measured.gradients, planned.gradients))
    return [
        *rows,
        ("while it is built", measured.peak_start, None),
        ("before the first step", measured.started, None),
        ("forward and backward", step.peak_forward_backward, None),
        ("update", step.peak_update, None),
        ("peak of a step", max(step.peak_forward_backward, step.peak_update), planned.peak),
        ("between steps", step.between_steps, planned.stays_between_steps),
        *([("on the host", step.host_peak, planned.host)] if offloaded or step.host_peak else []),
    ]


def traffic_rows(run: StageRun) -> list[tuple[str, float, int]]:
    """Name, measured and planned bytes that a rank receives from its data-parallel peers in a step."""
    received = {"all-gather": 0.0, "reduction": 0.0}
    for item in run.step.traffic:
        if item.group == "data":
            received["all-gather" if item.kind == "all-gather" else "reduction"] += item.received
    planned = run.planned_traffic
    return [
        ("parameters", received["all-gather"], planned.gather),
        ("gradients", received["reduction"], planned.reduction),
    ]


def _stage(run: StageRun) -> Iterator[str]:
    others = run.stages.others
    stands = f", for {len(others)} more like it, which hold fewer micro-batches at a time" if others else ""
    yield f"stage {run.stages.first}{stands}: rank {run.rank}, {run.measured.elements:,} parameters"
    yield from _columns(
        [
            ("MiB on the device", "measured", "planned", "off"),
            *((name, _mib(m), _mib(p), _off(m, p)) for name, m, p in memory_rows(run)),
        ]
    )
    yield from _columns(
        [
            ("data-parallel MiB received in a step", "measured", "planned", "off"),
            *((name, _mib(m), _mib(p), _off(m, p)) for name, m, p in traffic_rows(run)),
        ]
    )
    yield from _columns(
        [
            ("in a step", "group of", "number", "MiB of tensors", "MiB received"),
            *map(_traffic, run.step.traffic),
        ]
    )
    for place, number in sorted(run.step.waits.items()):
        yield f"  the host waits {number:,.0f} x for {place}"
    yield f"  the host starts {run.step.operations:,.0f} operations"
    yield "  start-up: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in run.measured.seconds.items())
    yield (
        f"  member of {len(run.measured.groups)} process groups, of {run.measured.groups_made:,} that all ranks make; "
        f"steps of {', '.join(str(step.micro_batches) for step in run.measured.steps)} micro-batches took "
        f"{', '.join(f'{step.seconds:.1f}' for step in run.measured.steps)} s here"
    )


def _traffic(item: Traffic) -> tuple[str, ...]:
    number = f"{item.number:,.0f}"
    return f"{item.group}: {item.kind}", f"{item.ranks:,}", number, _mib(item.size), _mib(item.received)


def _end(done: DryRun) -> Iterator[str]:
    resident = max(run.measured.resident for run in done.stages)
    yield (
        f"took {done.seconds:.0f} s, of which imports {done.seconds_imports:.0f} s, and {resident / MIB:,.0f} MiB of "
        "this machine's memory for each stage"
    )


def _mib(size: float | None) -> str:
    return "-" if size is None else f"{size / MIB:,.1f}" if size < 1e4 * MIB else f"{size / MIB:,.0f}"


def _off(measured: float, planned: float | None) -> str:
    """The plan against the measurement."""
    if planned is None:
        return ""
    if not measured:
        return "" if not planned else "not there"
    return f"{planned / measured - 1:+.1%}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield ("  " + "  ".join(cells)).rstrip()

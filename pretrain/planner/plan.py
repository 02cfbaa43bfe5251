"""`pretrain plan` and `pretrain train --check`: is this run legal on so many ranks, and what would each of them hold?

Nothing is started and torch is not imported: it runs on a login node.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_pipeline.shards.folder import LocalFolder
from data_pipeline.shards.manifest import MANIFEST_FILE
from data_pipeline.stream.dataset_locations import dataset_folders
from pretrain.config.bounds import LARGEST
from pretrain.config.checks import check_run
from pretrain.config.derived import data_parallel_size, micro_batches
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.run import RunConfig
from pretrain.planner.choice import modes_of, sized
from pretrain.planner.costs import bubble_share, step_traffic
from pretrain.planner.memory import HEADROOM, Modes, StageMemory, plan_memory
from pretrain.planner.memory_tables import MOMENTS, PARTS, columns, hints
from pretrain.planner.plan_time import run_tokens, time_lines, unknown_hardware_lines
from pretrain.planner.shapes import StageShapes, all_stages
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.sensitivity import guesses_that_matter
from pretrain.planner.time.step import predict_step

GIB = 2**30
MAX_ROWS = 16
"""Stages shown; the middle ones of a longer pipeline are equal."""


def check(config: RunConfig, ranks: int | None) -> str:
    """One line saying that the run is legal on `ranks` ranks (None: as many as the launcher started).

    Raises ConfigError with every broken rule, and the nearest legal layouts where the layout breaks one.
    """
    world_size = ranks_or_environment(ranks)
    check_run(config, world_size)
    return f"legal: {_layout(config, world_size)}\n"


@dataclass(frozen=True)
class Plan:
    """A legal run on a number of ranks, with its memory, its traffic and, on a known machine, its time."""

    config: RunConfig
    """With numbers in place of `auto`."""
    world_size: int
    vocab_size: int
    vocab_source: str
    modes: Modes
    gpu_memory: float | None
    """GiB of one device."""
    stages: Sequence[StageShapes]
    memory: Sequence[StageMemory]
    hardware: Hardware | None
    step: StepTime | None


def make_plan(config: RunConfig, ranks: int | None, gpu_memory: float | None, hardware: Hardware | None = None) -> Plan:
    """The plan. `gpu_memory`: GiB of one device. None: that of `hardware`, or unknown.

    Raises ConfigError as `check` does.
    """
    world_size = ranks_or_environment(ranks)
    check_run(config, world_size)
    vocab_size, source = vocabulary(config)
    if gpu_memory is None and hardware is not None and hardware.kind == "gpu":
        gpu_memory = hardware.memory_gib.value
    budget = None if gpu_memory is None else int(min(gpu_memory * GIB, 1 << 62))
    if budget is not None:
        config = sized(config, vocab_size, world_size, budget, hardware)
    elif config.train.micro_batch_size == "auto":
        rule = "is found for a device whose memory is known"
        raise ConfigError([Problem("train.micro_batch_size", "auto", rule, "give --gpu-memory")])
    modes = modes_of(config, vocab_size, world_size, budget, hardware)
    stages = all_stages(config.model, config.parallel, vocab_size)
    return Plan(
        config=config,
        world_size=world_size,
        vocab_size=vocab_size,
        vocab_source=source,
        modes=modes,
        gpu_memory=gpu_memory,
        stages=stages,
        memory=plan_memory(config, vocab_size, world_size, modes, stages),
        hardware=hardware,
        step=None if hardware is None else predict_step(config, vocab_size, world_size, modes, hardware),
    )


def plan(
    config: RunConfig,
    ranks: int | None,
    gpu_memory: float | None,
    hardware: Hardware | None = None,
    price: float | None = None,
) -> str:
    """Tables of the memory and cost of each pipeline stage, and the time of a step on a known machine.

    `price`: of one device for an hour. Raises ConfigError as `check` does.
    """
    made = make_plan(config, ranks, gpu_memory, hardware)
    config, world_size = made.config, made.world_size
    lines = [
        _layout(config, world_size),
        f"vocabulary of {made.vocab_size:,} ({made.vocab_source})",
        *_step(config, world_size),
        *_modes(config, made.modes, made.gpu_memory),
        *_traffic(config, made.vocab_size, world_size, made.modes),
        "",
        *_stage_table(made.stages),
        "",
        *_memory_table(made.memory),
        *hints(config, made.memory, world_size),
        *_verdict(made.memory, made.gpu_memory),
    ]
    if made.step is None or hardware is None:
        lines += unknown_hardware_lines()
    else:
        guesses = guesses_that_matter(config, made.vocab_size, world_size, made.modes, hardware)
        lines += ["", *time_lines(made.step, hardware, guesses, run_tokens(config), price)]
    return "\n".join(lines) + "\n"


def ranks_or_environment(ranks: int | None) -> int:
    """The number of ranks to plan for: `ranks`, else as many as the launcher started.

    Raises ConfigError if WORLD_SIZE is not a number.
    """
    if ranks is not None:
        return ranks
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError([Problem("WORLD_SIZE", text, "must be a number of ranks", "give --ranks")])
    return int(text)


def vocabulary(config: RunConfig) -> tuple[int, str]:
    """Its size and where that is known from: of the model, or of the prepared dataset, if there is one."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size, "model.vocab_size"
    folder = next(iter(dataset_folders(config.data).values()))
    if not isinstance(folder, LocalFolder) or (folder.path / MANIFEST_FILE).exists():
        return folder.manifest().tokenizer.vocab_size, f"of the dataset in {folder}"
    size = config.tokenizer.vocab_size
    if not 1 <= size <= LARGEST:
        raise ConfigError([Problem("tokenizer.vocab_size", size, f"must be from 1 to {LARGEST}")])
    return size, f"tokenizer.vocab_size; {folder} is not prepared"


def _layout(config: RunConfig, world_size: int) -> str:
    parallel, engine = config.parallel, config.engine
    cp = f"cp {parallel.cp}, " if parallel.cp > 1 else ""
    sp = ", sequence parallel" if parallel.sp and parallel.tp > 1 else ""
    return (
        f"{config.model.name} on {world_size} rank{'s' if world_size > 1 else ''}: tp {parallel.tp}{sp}, "
        f"{cp}pp {parallel.pp}, vp {parallel.vp}, data-parallel size {data_parallel_size(parallel, world_size)}, "
        f"ZeRO-{engine.zero_stage} {engine.precision}"
    )


def _step(config: RunConfig, world_size: int) -> list[str]:
    train, parallel = config.train, config.parallel
    dp = data_parallel_size(parallel, world_size) or 1
    number = micro_batches(train, dp) or 1
    lines = [
        f"a step: {train.global_batch_size:,} samples = {train.micro_batch_size} micro x {number:,} accumulated x "
        f"{dp:,} data-parallel"
    ]
    if parallel.pp > 1:
        share = bubble_share(parallel.pp, parallel.vp, number)
        lines.append(f"pipeline bubble: {share:.1%} of a step, for stages of equal work")
    return lines


def _modes(config: RunConfig, modes: Modes, gpu_memory: float | None) -> list[str]:
    engine, lines = config.engine, []
    unknown = "" if gpu_memory is not None else ", device memory unknown: give --gpu-memory"
    for needs, key, asked, chosen in (
        (2, "grad_reduction", engine.grad_reduction, modes.grad_reduction),
        (3, "param_gather", engine.param_gather, modes.param_gather),
    ):
        if engine.zero_stage >= needs:
            lines.append(f"engine.{key}: {chosen}" + (f" (auto{unknown})" if asked == "auto" else ""))
    return lines


def _traffic(config: RunConfig, vocab_size: int, world_size: int, modes: Modes) -> list[str]:
    traffic = step_traffic(config, vocab_size, world_size, modes)
    gather, reduction = max(item.gather for item in traffic), max(item.reduction for item in traffic)
    if not gather + reduction:
        return []
    return [
        f"data-parallel traffic of a step, for each rank of the fullest stage: {_size(gather)} of parameters and "
        f"{_size(reduction)} of gradients received"
    ]


def _stage_table(stages: Sequence[StageShapes]) -> list[str]:
    rows = []
    for rank, stage in enumerate(stages):
        spans = [f"{c.first}-{c.first + c.num_layers - 1}" for c in stage.chunks if c.num_layers]
        ends = ["embedding"] * stage.has_embedding + ["head"] * stage.has_head
        number = f"{stage.num_parameters:,}"
        rows.append([str(rank), str(stage.num_layers), ", ".join(spans) or "-", ", ".join(ends) or "-", number])
    return _table(["stage", "layers", "which", "ends", "parameters of a rank"], rows)


def _memory_table(memory: Sequence[StageMemory]) -> list[str]:
    unit, size = _unit(max(stage.peak for stage in memory))
    parts, moments = (_table(*columns(memory, shown, size)) for shown in (PARTS, MOMENTS))
    lines = [f"{unit} on each rank, by part:", *parts, "", f"{unit} on each rank at most, by moment of a step:"]
    return [*lines, *moments]


def _verdict(memory: Sequence[StageMemory], gpu_memory: float | None) -> list[str]:
    if gpu_memory is None:
        return []
    peak = max(stage.peak for stage in memory)
    room = f"{_size(peak)} of {gpu_memory:g} GiB, of which {HEADROOM:.0%} may be planned"
    return ["", f"fits: {room}" if peak <= HEADROOM * gpu_memory * GIB else f"does not fit: {room}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, numbers to the right; rows beyond MAX_ROWS that repeat the one before are left out."""
    kept = [head, *rows]
    if len(rows) > MAX_ROWS:
        half = MAX_ROWS // 2
        kept = [head, *rows[:half], ["..."] + [""] * (len(head) - 1), *rows[-half:]]
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    return ["  ".join(_cells(row, widths)).rstrip() for row in kept]


def _cells(row: Iterable[str], widths: Iterable[int]) -> Iterable[str]:
    return itertools.starmap(str.rjust, zip(row, widths, strict=True))


def _size(value: int) -> str:
    unit, size = _unit(value)
    return f"{value / size:.1f} {unit}"


def _unit(value: int) -> tuple[str, int]:
    return ("GiB", GIB) if value >= GIB else ("MiB", 2**20)

"""`pretrain bench`: measures a training step of the configured model on the devices of this machine."""

import gc
import gzip
import json
import logging
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.mixture import TrainingData
from pretrain.bench.data import VOCAB_SIZE, open_prepared, write_synthetic
from pretrain.bench.parts import PartTimes, part_times
from pretrain.bench.plot import draw
from pretrain.bench.result import make_result, new_folder, save
from pretrain.bench.table import as_table
from pretrain.config.checks import check_run
from pretrain.config.derived import with_micro_batch_size
from pretrain.config.errors import ConfigError, RunError
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout, world_from_environment
from pretrain.distributed.join import joined_ranks, layout_of
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.distributed.watchdog.errors import describe_error, is_out_of_memory
from pretrain.planner.choice import machine_of, sized
from pretrain.planner.memory import choose_modes, plan_memory
from pretrain.planner.time.versus import beside_trace, check_hardware
from pretrain.tracking.provenance import describe_environment
from pretrain.tracking.speed import device_peak
from pretrain.training.data import vocab_size_of

if TYPE_CHECKING:
    from torch.profiler import profile

    from pretrain.distributed.groups import ProcessGroups

PROFILED = 3
"""Steps after the timed ones."""
TRACE_FILE = "trace.json.gz"
GIB = 2**30

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options besides the configuration."""

    warmup: int = 20
    steps: int = 50
    out: Path | None = None
    vocab_size: int | None = None
    """Measure on pseudo-random tokens of a vocabulary of this size; None: on the configured dataset, if prepared."""
    command: Sequence[str] = ()


def bench(config: RunConfig, wanted: BenchOptions) -> tuple[Path, dict[str, Any]] | None:
    """Measure and save; returns the folder and the result on rank 0, None on the others.

    Raises UserError if this cannot run here, for example if the memory does not suffice.
    """
    rank, world_size, _ = world_from_environment()
    check_run(config, world_size)
    check_hardware(config)
    if wanted.vocab_size is not None and wanted.vocab_size < 2:
        raise ConfigError([f"--vocab-size {wanted.vocab_size}: must be at least 2: one token ends documents"])
    prepared = open_prepared(config) if wanted.vocab_size is None else None
    folder = new_folder(wanted.out, config.model.name) if rank == 0 else None
    try:
        return _measure(config, wanted, prepared, folder)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # it did not exist before, or was empty
        if not is_out_of_memory(error):
            raise
        raise RunError(f"{config.model.name}: {describe_error(error)}") from None


def _measure(
    config: RunConfig, wanted: BenchOptions, prepared: TrainingData | None, folder: Path | None
) -> tuple[Path, dict[str, Any]] | None:
    layout = layout_of(config)
    with joined_ranks(config) as (here, groups):
        from pretrain.bench.ceilings import measure_ceilings
        from pretrain.bench.roofline import ideal_seconds, roofline
        from pretrain.bench.steps import peak_over_ranks, run_steps, start_peak
        from pretrain.training.assembly import build_trainer
        from pretrain.training.profiling import StepProfiler

        with megatron_imports():
            from pretrain.engine.build import smallest_memory

        place = _place_of_all(folder, groups)
        config = replace(config, run=replace(config.run, dir=str(place)))  # for files that the engine leaves
        dataset = prepared or _synthetic(config, wanted.vocab_size or VOCAB_SIZE, place / "data", groups)
        memory = smallest_memory(here.device, groups.control)
        vocab_size = vocab_size_of(config, dataset)
        check_memory(config, vocab_size, layout, memory)
        config = sized(config, vocab_size, here.world_size, memory, machine_of(config))
        peak = device_peak(config.tracking.peak_tflops, here.gpu_name, config.engine.precision)
        # Before the model is built: later there may be no room for a large product.
        ceilings = measure_ceilings(config, vocab_size, here.device)
        start_peak(here.device)
        trainer = build_trainer(config, dataset, here, groups)
        log.info(
            "%s: %d warm-up, %d timed, %d profiled steps", config.model.name, wanted.warmup, wanted.steps, PROFILED
        )
        measured = wanted.warmup + wanted.steps
        parts: list[PartTimes] = []

        def keep(recorded: "profile", first: int, last: int) -> None:
            assert folder is not None
            parts.append(parts_of(recorded, folder, on_gpu=here.device.type == "cuda"))

        profiler = StepProfiler(measured + 1, measured + PROFILED, keep) if here.is_main else None
        gc.collect()  # garbage of the build is not part of a step
        steps = run_steps(trainer, measured + PROFILED, profiler)
        peak_bytes = peak_over_ranks(steps[measured - 1]["peak_bytes"], groups)
        environment = describe_environment()
        if folder is None:
            return None
    timed, profiled = steps[wanted.warmup : measured], parts[0]
    planned = trainer.planned_step()
    ideal = ideal_seconds(config, vocab_size, layout, ceilings.best[1], ceilings.bandwidth)
    middle = {name: statistics.median(step[name] for step in timed) for name in ("seconds_step", "seconds_data")}
    rows = roofline(profiled, middle["seconds_step"], middle["seconds_data"], ideal)
    parts_found: dict[str, float] = {row.part: row.seconds for row in rows}
    versus = None if planned is None else beside_trace(planned, middle["seconds_step"], parts_found)
    result = make_result(
        config=config,
        command=wanted.command,
        environment=environment,
        layout={"world_size": layout.world_size, "tp": layout.tp, "pp": layout.pp, "dp": layout.replicas},
        dataset=dataset,
        warmup=wanted.warmup,
        timed=timed,
        flops=trainer.token_flops,
        peak=peak,
        ceilings=ceilings,
        memory={
            "peak_gib": peak_bytes / GIB,
            "of": "allocated on the GPU" if here.device.type == "cuda" else "resident for the process",
        },
        profiled=profiled,
        rows=rows,
        versus=versus,
    )
    save(folder, result, as_table(result), draw(result))
    return folder, result


def _place_of_all(folder: Path | None, groups: "ProcessGroups") -> Path:
    """The folder of the result on every rank; rank 0 chose it."""
    import torch.distributed as dist

    places = [folder]
    dist.broadcast_object_list(places, src=0, group=groups.control)
    assert places[0] is not None
    return places[0]


def _synthetic(config: RunConfig, vocab_size: int, folder: Path, groups: "ProcessGroups") -> TrainingData:
    """A synthetic dataset, which rank 0 writes and all ranks read."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        write_synthetic(folder, config, vocab_size)
    dist.barrier(group=groups.control)
    return PackedDataset.open(folder, "train")


def check_memory(config: RunConfig, vocab_size: int, layout: ParallelLayout, available: int) -> None:
    """Raise RunError if parameters and optimizer state alone exceed the memory of a device."""
    if config.train.micro_batch_size == "auto":
        config = with_micro_batch_size(config, 1)  # it is chosen later; the memory of the state does not depend on it
    modes = choose_modes(config, vocab_size, layout.world_size, available)
    needed = max(stage.stays_between_steps for stage in plan_memory(config, vocab_size, layout.world_size, modes))
    if needed > available:
        raise RunError(
            f"{config.model.name}: does not fit: {needed / GIB:.1f} GiB of parameters and optimizer state for each "
            f"rank, which has {available / GIB:.1f} GiB",
            "choose a smaller model=, more ranks, or engine.offload",
        )


def parts_of(recorded: "profile", folder: Path, *, on_gpu: bool) -> PartTimes:
    """Part times from the trace, which is also written beside the result for chrome://tracing and Perfetto.

    Empty if the trace cannot be written or read: the timed steps are worth keeping without it.
    """
    try:
        recorded.export_chrome_trace(str(folder / TRACE_FILE))
        with gzip.open(folder / TRACE_FILE) as file:
            return part_times(json.load(file), on_gpu=on_gpu)
    except Exception:
        log.exception("%s: the trace of the profiler cannot be used", folder / TRACE_FILE)
        return PartTimes({}, 0.0, on_gpu)

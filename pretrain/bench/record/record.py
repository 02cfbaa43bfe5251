"""`pretrain bench --record FILE`: measures the machine, and writes the record that the planner reads.

One process measures what a rank alone does. If there are several ranks, the first one starts such a process while
the others wait, and then all measure their links together.
"""

import dataclasses
import datetime
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.child_process import die_with_parent
from pretrain.bench.record.destination import OPTION, check_destination
from pretrain.bench.record.progress import show_parts
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import world_from_environment
from pretrain.distributed.join import joined_ranks
from pretrain.planner.time.hardware import (
    Hardware,
    Link,
    Quantity,
    Rates,
    hardware_of_device,
    load_hardware,
    read_hardware,
    write_hardware,
)

MEETING_MINUTES = 30
"""Ranks wait so long for the one that measures alone."""
OF_SEVERAL_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")

log = logging.getLogger(__name__)


def record_machine(config: RunConfig, path: Path, overrides: Sequence[str], command: Sequence[str]) -> Hardware | None:
    """Measure and write the record; returns it on rank 0. `overrides`: those that `config` was made with.

    Raises UserError before anything is measured if the file cannot be written.
    """
    rank, world_size, _ = world_from_environment()
    if rank == 0:
        check_destination(path)
    name = path.stem
    record = _measure_alone(config, name) if world_size == 1 else _measure_together(config, name, overrides)
    if rank > 0:
        return None
    record = rounded(record)
    from pretrain.tracking.provenance import describe_environment

    write_hardware(record, path, _heading(describe_environment(), command, world_size))
    return record


def _measure_alone(config: RunConfig, name: str) -> Hardware:
    # A probe's micro-batches and layout are its own.
    config = replace(config, parallel=replace(config.parallel, tp=1, pp=1, vp=1, sp=False))
    with joined_ranks(config) as (here, groups):
        import torch

        from pretrain.bench.record.alone import PARTS_ON_CPU, PARTS_ON_GPU, Bench, measure_alone
        from pretrain.bench.record.engine import Steps
        from pretrain.bench.record.timer import Timer
        from pretrain.tracking.provenance import describe_environment

        timer = Timer(here.device, torch.get_num_threads())
        with tempfile.TemporaryDirectory() as folder:
            steps = Steps(replace(config, run=replace(config.run, dir=folder)), groups, timer)
            with show_parts("record", PARTS_ON_CPU if timer.on_cpu else PARTS_ON_GPU) as show:
                bench = Bench(timer, steps, _source(describe_environment()), show)
                return replace(measure_alone(bench, _base(here.gpu_name)), name=name)


def _measure_together(config: RunConfig, name: str, overrides: Sequence[str]) -> Hardware:
    """The links beside what one rank measures alone; on ranks other than the first the result has no meaning."""
    rank, *_ = world_from_environment()
    alone = _in_own_process(overrides) if rank == 0 else load_hardware("cpu")
    config = replace(config, engine=replace(config.engine, init_timeout_minutes=MEETING_MINUTES))
    config = replace(config, parallel=replace(config.parallel, tp=1, pp=1, vp=1, sp=False))
    with joined_ranks(config) as (here, _):
        from pretrain.bench.record.links import groups_between_nodes, groups_in_node, measure_crowding, measure_links
        from pretrain.bench.record.links_of import with_links
        from pretrain.tracking.provenance import describe_environment

        inside, between = groups_in_node(here), groups_between_nodes(here)
        progress = show_parts("links", len(inside) + len(between) + 1) if here.is_main else nullcontext(_show_nothing)
        with progress as show:
            found = []
            for named in (*inside, *between):
                show(f"{named.size} ranks{' of several nodes' if named in between else ''}")
                found.append(measure_links(named, here))
            show("ranks that compute at once")
            crowding = measure_crowding(here)
        source = _source(describe_environment())
    record = replace(alone, name=name)
    return with_links(record, found[: len(inside)], found[len(inside) :], crowding, source) if rank == 0 else alone


def _show_nothing(_: str) -> None: ...


def _in_own_process(overrides: Sequence[str]) -> Hardware:
    """Run the same command on one rank, with as many threads as a rank has here; returns its record."""
    variables = {name: value for name, value in os.environ.items() if name not in OF_SEVERAL_RANKS}
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    variables.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "alone.yaml")
        words = [sys.executable, "-m", "pretrain", "bench", OPTION, str(path), *overrides]
        # Its own progress goes to this process's stream.
        code = subprocess.run(
            words,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            check=False,
        ).returncode
        if code:
            raise RunError(
                f"{OPTION}: the process that measures one rank alone ended with exit code {code}", "see above"
            )
        return read_hardware(path)


def _base(gpu_name: str | None) -> Hardware:
    """The values that are not measured: of this machine's preset, or guesses after another one's."""
    if gpu_name is None:
        return load_hardware("cpu")
    known = hardware_of_device(gpu_name)
    if known is not None:
        return known
    other = load_hardware("h100")
    log.warning("%s: no preset knows it; what is not measured is guessed after %s", gpu_name, other.name)
    return replace(guessed(other, f"that of {other.name}; {gpu_name} has no preset"), device_names=(f"^{gpu_name}$",))


def guessed(hardware: Hardware, source: str) -> Hardware:
    """The same values, each as a guess."""
    return _guessed(hardware, source)


def _guessed(value: Any, source: str) -> Any:
    if isinstance(value, Quantity):
        return Quantity(value.value, "guess", source)
    if isinstance(value, Rates | Link | Hardware):
        changed = {field.name: _guessed(getattr(value, field.name), source) for field in dataclasses.fields(value)}
        return replace(value, **changed)
    return value


def _source(environment: Mapping[str, Any]) -> str:
    versions = environment["versions"]
    return f"pretrain bench on {environment['device']}, torch {versions['torch']}, {_threads(environment)}"


def _threads(environment: Mapping[str, Any]) -> str:
    number = environment["threads"]
    return f"{number} thread{'s' if number > 1 else ''} a process"


def rounded(value: Any) -> Any:
    """The same record with numbers of five digits: more were not measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(rounded, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: rounded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        )
    return value


def _heading(environment: Mapping[str, Any], command: Sequence[str], world_size: int) -> str:
    versions = environment["versions"]
    of_ranks = f", {world_size} ranks" if world_size > 1 else ""
    today = datetime.datetime.now(datetime.UTC).date()
    return "\n".join(
        (
            f"A machine as measured by `{shlex.join(command)}` on {today}.",
            f"{environment['device']}, {environment['cores']} cores, {_threads(environment)}{of_ranks};",
            ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "deepspeed", "megatron-core"))
            + f"; {environment['platform']}.",
            "What is not measured has another origin: only a long run on a GPU shows how far its clock falls.",
        )
    )

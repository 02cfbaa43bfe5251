"""Rules of `cluster`: values that Slurm would refuse or misread."""

import math
import re
from collections.abc import Iterator

from pretrain.config.cluster import ClusterConfig
from pretrain.config.errors import Problem

MAX_SIGNAL_SECONDS = 65535
"""Slurm's own limit."""
START_SECONDS = 120
"""Seconds between the start of a job and the signal: Slurm may send it a minute early, and start-up takes another."""

POSITIVE = "nodes gpu_memory_gib tasks_per_node cpus_per_task restart_window_minutes"
NOT_NEGATIVE = "gpus_per_node max_restarts backoff_seconds exclude_after"

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+,:-]*")
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_MODULE = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+/@:~=-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLAG = re.compile(r"--[a-z][a-z0-9-]*(=.*)?")
_MOUNT = re.compile(r"[^:,]+:/[^:,]*(:[^:,]+)?")

OWN_FLAGS = {
    "--partition": "cluster.partition",
    "--account": "cluster.account",
    "--qos": "cluster.qos",
    "--nodes": "cluster.nodes",
    "--ntasks": "cluster.nodes and cluster.tasks_per_node",
    "--ntasks-per-node": "cluster.tasks_per_node",
    "--cpus-per-task": "cluster.cpus_per_task",
    "--mem": "cluster.memory",
    "--time": "cluster.time",
    "--signal": "cluster.signal_seconds",
    "--job-name": "run.name",
    "--array": "`pretrain submit -m`",
}
"""Flags of sbatch that would contradict what is checked, and what is set instead."""
NOT_OURS = frozenset({"--wrap", "--output", "--error", "--open-mode", "--no-requeue", "--chdir", "--parsable"})
"""Those without which a run is not found, not continued or not started."""


def cluster_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    """Every broken rule."""
    yield from _numbers(cluster)
    yield from _texts(cluster)
    yield from _container(cluster)
    for name, value in cluster.environment.items():
        if not _VARIABLE.fullmatch(name):
            yield Problem("cluster.environment", name, "is not a valid variable name", "use letters, digits and _")
        elif not is_printable(str(value)):
            yield Problem(f"cluster.environment.{name}", value, _ONE_LINE)
    for module in cluster.modules:
        if not _MODULE.fullmatch(module):
            yield Problem(
                "cluster.modules", module, "is not a valid name of a module", "write it as `module avail` does"
            )
    for flag in cluster.sbatch_flags:
        yield from _flag(flag)


def memory_bytes(text: str) -> int | None:
    """The bytes that `cluster.memory` asks for, or None for all that the node has. Slurm's default unit is MiB."""
    matched = _MEMORY.fullmatch(text)
    assert matched is not None
    number, unit = int(matched[1]), (matched[2] or "M").upper()
    return number * 2 ** (10 * (1 + "KMGT".index(unit))) or None


def time_seconds(text: str) -> int | None:
    """The seconds that `cluster.time` is, None: no limit. Slurm reads one number as minutes, and 2-00 as days-hours."""
    if not text[0].isdigit():
        return None
    days, dash, rest = text.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def is_printable(text: str) -> bool:
    """Whether it is one line without control characters."""
    return text.isprintable()


_ONE_LINE = "must be one line of printable characters"


def _numbers(cluster: ClusterConfig) -> Iterator[Problem]:
    for names, rule, lowest in (
        (POSITIVE, "must be greater than 0", None),
        (NOT_NEGATIVE, "must not be negative", 0),
    ):
        for name in names.split():
            value = getattr(cluster, name)
            if value is not None and not (math.isfinite(value) and (value > 0 or value == lowest)):
                yield Problem(f"cluster.{name}", value, rule)
    if not 0 < cluster.signal_seconds <= MAX_SIGNAL_SECONDS:
        rule = f"must be from 1 to {MAX_SIGNAL_SECONDS}"
        yield Problem("cluster.signal_seconds", cluster.signal_seconds, rule, "give a run the time that a save takes")
    if cluster.gpus_per_node > 0 and cluster.ranks_per_node > cluster.gpus_per_node:
        rule = f"is more than cluster.gpus_per_node={cluster.gpus_per_node}: each rank needs a GPU of its own"
        yield Problem("cluster.tasks_per_node", cluster.tasks_per_node, rule, "set it to null")


def _texts(cluster: ClusterConfig) -> Iterator[Problem]:
    for name in ("partition", "account", "qos"):
        value = getattr(cluster, name)
        if value is not None and not _NAME.fullmatch(value):
            rule = "must be a name: letters, digits and any of _.@+,:-"
            yield Problem(f"cluster.{name}", value, rule, "write it as `sinfo` and `sacctmgr` do")
    if cluster.memory is not None and not _MEMORY.fullmatch(cluster.memory):
        yield Problem(
            "cluster.memory", cluster.memory, "must be a number with K, M, G or T", "write 500G, or 0 for all"
        )
    if cluster.time is not None and not _TIME.fullmatch(cluster.time):
        rule = "must be minutes, hours:minutes:seconds or days-hours"
        yield Problem("cluster.time", cluster.time, rule, "write 24:00:00 or 2-00, in quotes in a file")
    elif cluster.time is not None and (limit := time_seconds(cluster.time)) is not None:
        least = cluster.signal_seconds + START_SECONDS
        if limit < least:
            rule = (
                f"is {limit} s, and {least} are needed: {START_SECONDS} for a run to start, then "
                f"cluster.signal_seconds={cluster.signal_seconds} to save and stop"
            )
            yield Problem("cluster.time", cluster.time, rule, f"write {math.ceil(least / 60)} (minutes) or more")


def _container(cluster: ClusterConfig) -> Iterator[Problem]:
    container = cluster.container
    if container.kind == "none":
        if container.image is not None or container.mounts:
            rule = "there is an image or a mount, and no container"
            yield Problem("cluster.container.kind", "none", rule, "set it to pyxis or apptainer")
        return
    if not container.image:
        yield Problem("cluster.container.image", container.image, f"kind={container.kind} needs one", "set it")
    elif not is_printable(container.image) or container.image.startswith("-"):
        yield Problem("cluster.container.image", container.image, f"{_ONE_LINE} that does not begin with -")
    for mount in container.mounts:
        if not _MOUNT.fullmatch(mount) or not is_printable(mount):
            rule = "must be HOST:INSIDE or HOST:INSIDE:FLAGS, INSIDE beginning with /"
            yield Problem(
                "cluster.container.mounts", mount, rule, "give each mount its own entry, as in [/data:/data:ro]"
            )


def _flag(flag: str) -> Iterator[Problem]:
    name = flag.partition("=")[0]
    if not is_printable(flag) or not _FLAG.fullmatch(flag):
        rule = "must be --name or --name=value, on one line"
        remedy = """give each flag an entry, as in ["--exclusive","--nice=10"]"""
        yield Problem("cluster.sbatch_flags", flag, rule, remedy)
        return
    # Slurm takes the beginning of a name for the name.
    own = next((key for key in OWN_FLAGS if key.startswith(name)), None)
    if own is not None:
        yield Problem("cluster.sbatch_flags", flag, "would contradict what was checked", f"set {OWN_FLAGS[own]}")
    elif any(key.startswith(name) for key in NOT_OURS):
        yield Problem("cluster.sbatch_flags", flag, "`pretrain submit` needs it as it sets it", "leave it out")

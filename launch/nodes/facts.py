"""The report of one node before a run: name, versions, clock, free memory and disk. Without torch it takes a second."""

import hashlib
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "pretrain")
SOURCES = ("pretrain", "data_pipeline", "launch", "conf")
GIB = 2**30


@dataclass(frozen=True)
class NodeReport:
    """One report; `time` is that of the node's own clock when the report is written."""

    index: int
    name: str
    versions: Mapping[str, str]
    free_memory: int
    """Free bytes of host memory."""
    free_disk: int
    """Free bytes on the disk of the run folder."""
    free_temporary: int
    """Free bytes on the disk of the node's folder for temporary files."""
    free_shared_memory: int | None
    """Free bytes in /dev/shm, where ranks of one node exchange data; None if the node has no such folder."""
    gpu_faults: tuple[str, ...]
    time: float

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "NodeReport":
        return NodeReport(**{**values, "gpu_faults": tuple(values["gpu_faults"])})


def place_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int, str]:
    """(index, number of nodes, name) of this node by srun, torchrun or launch.ssh.hosts; (0, 1, host) if alone."""
    name = environment.get("SLURMD_NODENAME") or environment.get("NODE_NAME") or socket.gethostname()
    if "RANK" in environment:
        return int(environment["RANK"]), int(environment.get("WORLD_SIZE", "1")), name
    if "SLURM_STEP_NUM_TASKS" in environment:
        return int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]), name
    return 0, 1, name


def describe_node(index: int, name: str, run_dir: Path, gpu_faults: list[str], time: float) -> NodeReport:
    """The report of this node."""
    shared_memory = Path("/dev/shm")
    return NodeReport(
        index=index,
        name=name,
        versions=versions(),
        free_memory=psutil.virtual_memory().available,
        free_disk=shutil.disk_usage(run_dir).free,
        free_temporary=shutil.disk_usage(tempfile.gettempdir()).free,
        free_shared_memory=shutil.disk_usage(shared_memory).free if shared_memory.is_dir() else None,
        gpu_faults=tuple(gpu_faults),
        time=time,
    )


def versions() -> dict[str, str]:
    """The versions of everything that must be the same on every node, including the sources of this program."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"sources of pretrain": source_digest(Path(__file__).resolve().parents[2])}


def source_digest(root: Path) -> str:
    """A digest of the program's files. Unlike a git revision it also changes with edits that are not committed."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]

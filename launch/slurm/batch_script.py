"""The batch script of a job, from settings: every value is quoted for the program that reads it."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from launch.slurm.batch_shell import LISTEN, run
from launch.slurm.container import container_variables
from pretrain.config.cluster import ClusterConfig
from pretrain.exit_codes import ExitCode


@dataclass(frozen=True)
class BatchJob:
    """The job that one batch script starts."""

    name: str
    log: str
    """Path of its output; Slurm replaces %j, %A, %a."""
    folder: str
    """Its working directory."""
    command: tuple[str, ...]
    members: tuple[int, ...] = ()
    """Indexes of a job array; empty for a single job."""


def batch_script(cluster: ClusterConfig, job: BatchJob) -> str:
    """The script for sbatch. The settings must have passed `cluster_problems`; names and paths must be printable."""
    return "\n".join(["#!/bin/bash", *_directives(cluster, job), "", *_commands(cluster, job)])


def slurm_word(text: str) -> str:
    """Quote one word of a #SBATCH line. Slurm has its own rules: # begins a comment outside of quotes, and \\ also
    escapes in single quotes."""
    assert text.isprintable(), "a control character would end the line"
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text):
        return text
    return "'" + re.sub(r"([\\'])", r"\\\1", text) + "'"


def slurm_path(text: str) -> str:
    """Escape a path in a setting in which Slurm replaces %j and the like."""
    return text.replace("%", "%%")


def _directives(cluster: ClusterConfig, job: BatchJob) -> Iterator[str]:
    for name, value in (
        ("job-name", job.name),
        ("partition", cluster.partition),
        ("account", cluster.account),
        ("qos", cluster.qos),
        ("nodes", cluster.nodes),
        ("ntasks-per-node", cluster.ranks_per_node),
        ("cpus-per-task", cluster.cpus_per_task),
        ("gres", f"gpu:{cluster.gpus_per_node}" if cluster.gpus_per_node else None),
        ("mem", cluster.memory),
        ("time", cluster.time),
        ("array", ",".join(map(str, job.members)) or None),
        ("output", job.log),
        # B: only the batch process gets the signal, and passes it to the ranks.
        ("signal", f"B:USR1@{cluster.signal_seconds}"),
    ):
        if value is not None:
            yield f"#SBATCH {slurm_word(f'--{name}={value}')}"
    yield "#SBATCH --requeue"
    yield "#SBATCH --open-mode=append"
    for flag in cluster.sbatch_flags:
        yield f"#SBATCH {slurm_word(flag)}"


def _commands(cluster: ClusterConfig, job: BatchJob) -> Iterator[str]:
    yield LISTEN.rstrip("\n")
    if cluster.modules:
        # A batch shell is not a login shell. Profiles fail under `set -eu`, which therefore comes later.
        yield "type module >/dev/null 2>&1 || . /etc/profile"
        refuse = f'{{ echo "no modules on $(hostname)" >&2; exit {ExitCode.MISTAKE}; }}'
        yield f"module load {shlex.join(cluster.modules)} || {refuse}"
    yield "set -euo pipefail"
    yield f"cd -- {shlex.quote(job.folder)}"
    for name, value in {**cluster.environment, **container_variables(cluster, job.folder)}.items():
        yield f"export {name}={shlex.quote(str(value))}"
    yield run(shlex.join(job.command))

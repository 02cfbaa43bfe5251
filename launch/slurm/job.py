"""This job, as Slurm's environment variables describe it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.errors import UserError
from pretrain import slurm_client


@dataclass(frozen=True)
class SlurmJob:
    """A job that runs: what does not change until it ends."""

    name: str
    """The id for Slurm's commands; for a task of an array, ARRAY_TASK."""
    restarts: int
    """How often the job was queued again."""
    nodes: tuple[str, ...]
    """The nodes in Slurm's order. This program and rank 0 run on the first."""
    tasks_per_node: tuple[int, ...]
    cpus_per_task: int | None
    """None: the job asked for no number."""
    gpus_per_node: int
    overcommit: bool = False
    """More ranks on a node than CPUs."""

    @property
    def ranks(self) -> int:
        return sum(self.tasks_per_node)


def job_of(environment: Mapping[str, str]) -> SlurmJob:
    """The job that this process runs in; raises UserError outside of one."""
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        raise UserError("this runs inside a Slurm job: sbatch slurm/pretrain.sh key=value ...")
    given = environment["SLURM_JOB_NODELIST"]
    nodes, message = slurm_client.host_names(given)
    if not nodes:
        raise UserError(
            f"SLURM_JOB_NODELIST={given!r}: scontrol names no node ({message})",
            "check that scontrol works on this node",
        )
    tasks = counts(environment.get("SLURM_TASKS_PER_NODE", "1"))
    cpus = int(environment["SLURM_CPUS_PER_TASK"]) if "SLURM_CPUS_PER_TASK" in environment else None
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    overcommit = False
    if (
        gpus > 1 and not {"SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"} & environment.keys()
    ):  # the job asked for GPUs and not for tasks: one task for each GPU
        tasks = (gpus,) * len(nodes)
        cpus_on_node = min(counts(environment.get("SLURM_JOB_CPUS_PER_NODE", "1")))
        cpus, overcommit = cpus or max(1, cpus_on_node // gpus), cpus_on_node < gpus
    return SlurmJob(
        name=job_name(environment),
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        nodes=tuple(nodes),
        tasks_per_node=tasks,
        cpus_per_task=cpus,
        gpus_per_node=gpus,
        overcommit=overcommit,
    )


def job_name(environment: Mapping[str, str]) -> str:
    """The id by which a job is queued again. The last task of an array has the array's id as its SLURM_JOB_ID, which
    would queue all tasks again."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def counts(text: str) -> tuple[int, ...]:
    """Slurm's numbers per node: 2(x3),1 is 2, 2, 2, 1."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"not a list of counts: {text!r}")
        found += [int(match[1])] * int(match[2] or 1)
    return tuple(found)

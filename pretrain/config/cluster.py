"""How a cluster is asked for a run: what Slurm is told, what surrounds each process, how often it is started again."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """The container that each rank runs in; the batch script itself runs outside, where Slurm's commands are."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    """pyxis: srun's own --container-image (Enroot); apptainer: `apptainer exec` around each process."""
    image: str | None = None
    """As Pyxis or Apptainer takes it: a file, or a name in a registry. Its python3 must have what `pretrain` needs."""
    mounts: tuple[str, ...] = ()
    """HOST:INSIDE or HOST:INSIDE:FLAGS each; the folder of submission is mounted always, under its own path."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Resources and surroundings of a job. Defaults are those of a job that says nothing: one process on one node.
    Runs made before there was this section are read with them."""

    partition: str | None = None
    """null: as the cluster has it by default."""
    account: str | None = None
    """null: as the cluster has it by default."""
    qos: str | None = None
    """Quality of service; null: as the cluster has it by default."""
    nodes: int = 1
    """Number of nodes."""
    gpus_per_node: int = 0
    """0: CPUs only."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU, for the check before submission; null: not checked."""
    tasks_per_node: int | None = None
    """Ranks on a node; null: one for each GPU, one where there is none."""
    cpus_per_task: int | None = None
    """CPU cores of each rank; null: as the cluster has it by default."""
    memory: str | None = None
    """Of a node, as in 500G; 0: all of it."""
    time: str | None = None
    """Limit of one job, as in 24:00:00 or 2-00, in a file in quotes; a longer run goes on in the same job, queued
    again."""
    signal_seconds: int = 180
    """How long before the limit the run is asked to save and stop: longer than a save takes, and at least two minutes
    less than `time`."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    modules: tuple[str, ...] = ()
    """For `module load`."""
    environment: dict[str, str | int] = field(default_factory=dict)
    """Variables of every process, such as NCCL_SOCKET_IFNAME; cluster.environment.NAME=value adds one."""
    sbatch_flags: tuple[str, ...] = ()
    """More of them, as in ["--exclusive","--constraint=h100"]."""
    max_restarts: int = 5
    """Attempts that may fail within the window without a step of progress, before the job ends as failed; those that
    are asked to stop, or that Slurm ends, do not count."""
    restart_window_minutes: float = 60.0
    """Length of that window; a failure that follows the one before it later than this is counted as the first."""
    backoff_seconds: float = 30.0
    """Wait before the first restart after a failure; doubled for each further one."""
    exclude_after: int = 2
    """Failures of a node after which the job runs elsewhere; 0: never."""

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node if self.tasks_per_node is not None else max(self.gpus_per_node, 1)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

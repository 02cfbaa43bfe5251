"""The Slurm job of a run: its resources, the environment of its processes, and its restarts."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """Container that each rank runs in. The batch script itself runs outside, because it needs the commands of
    Slurm."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    """pyxis: started by the --container-image option of srun (Enroot). apptainer: each process is started by `apptainer
    exec`."""
    image: str | None = None
    """Image in the form that Pyxis or Apptainer takes: a file, or a name in a registry. Its python3 must have
    pretrain's requirements."""
    mounts: tuple[str, ...] = ()
    """Mounts, each HOST:INSIDE or HOST:INSIDE:FLAGS. The folder of submission is always mounted at its own path."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Slurm resources of a job, the environment of its processes, and its restarts. The defaults are one process on one
    node."""

    partition: str | None = None
    """Slurm partition. null: the cluster's default."""
    account: str | None = None
    """Slurm account. null: the cluster's default."""
    qos: str | None = None
    """Slurm quality of service. null: the cluster's default."""
    nodes: int = 1
    """Number of nodes."""
    gpus_per_node: int = 0
    """Number of GPUs on each node. 0: run on CPUs."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU in GiB, checked before submission. null: not checked."""
    hardware: str | None = None
    """Machine whose speed `pretrain plan` predicts the step time from: a name in conf/hardware/, such as h100, or a
    file that `pretrain bench --record FILE` wrote. null: recognized by the name of the GPU when training starts."""
    tasks_per_node: int | None = None
    """Number of ranks on each node. null: one per GPU, or one if gpus_per_node is 0."""
    cpus_per_task: int | None = None
    """Number of CPU cores for each rank. null: the cluster's default."""
    memory: str | None = None
    """Memory of each node, as in 500G. "0": all of it."""
    time: str | None = None
    """Time limit of one job, as in 24:00:00 or 2-00, quoted in a file. A longer run continues in the same job, which is
    requeued."""
    signal_seconds: int = 180
    """Seconds before the time limit at which the run is asked to save and stop. It must be longer than a save takes,
    and at least two minutes shorter than `time`."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    modules: tuple[str, ...] = ()
    """Environment modules to load with `module load`."""
    environment: dict[str, str | int] = field(default_factory=dict)
    """Environment variables of every process, such as NCCL_SOCKET_IFNAME. cluster.environment.NAME=value adds one."""
    sbatch_flags: tuple[str, ...] = ()
    """Additional flags of sbatch, as in ["--exclusive","--constraint=h100"]."""
    max_restarts: int = 5
    """Number of failed attempts without a new step within the window before the job ends as failed. Attempts that were
    asked to stop, or that Slurm ended, do not count."""
    restart_window_minutes: float = 60.0
    """Length of that window in minutes. A failure later than this after the previous one is counted as the first."""
    backoff_seconds: float = 30.0
    """Seconds before the first restart after a failure. Doubled for each further restart."""
    exclude_after: int = 2
    """Number of failures of a node after which the job avoids it. 0: never."""

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node if self.tasks_per_node is not None else max(self.gpus_per_node, 1)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

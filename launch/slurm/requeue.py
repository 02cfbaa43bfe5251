"""How a job queues itself again, and whether it can do so without some of its nodes."""

import itertools
import math
import signal
import time
from collections.abc import Callable, Sequence

from launch.slurm.job import SlurmJob
from pretrain import slurm_client

RETRY_SECONDS = 10.0
"""Time between two requests to a controller that does not answer."""
LONGEST_ASKING_SECONDS = 24 * 3600.0
"""How long a controller that is down is asked if the job's limit is unknown: its nodes stay allocated."""


def can_do_without(job: SlurmJob, excluded: Sequence[str]) -> bool:
    """Whether enough nodes are left in the job's partition, and none of `excluded` was asked for by name."""
    up = slurm_client.usable_nodes(job.name) | set(job.nodes)
    banned, wanted = slurm_client.excluded_nodes(job.name), slurm_client.required_nodes(job.name)
    if banned is None or wanted is None:
        return False
    return len(up - set(excluded) - set(banned)) >= len(job.nodes) and not set(excluded) & set(wanted)


def requeue(
    job: str, *, wait_seconds: float, exclude: Sequence[str], until: float, waiting: Callable[[str], None]
) -> str:
    """Queue this job again; returns why that failed, or nothing. Call it last: Slurm then ends this process.

    A controller that does not answer is asked again until `until` (of time.monotonic), the end of the job's time, or
    for LONGEST_ASKING_SECONDS if the job's limit is unknown or infinite. `waiting` is called once with its message.
    `exclude` is added to the nodes that the job's owner excluded.
    """
    # Slurm sends SIGTERM to every process of the job, also to the command that changes it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if math.isinf(until):
        until = time.monotonic() + LONGEST_ASKING_SECONDS
    for attempt in itertools.count():
        banned = slurm_client.excluded_nodes(job) if exclude else None
        refusal = slurm_client.requeue(job)
        if refusal is None:
            break
        if refusal.is_final or time.monotonic() + RETRY_SECONDS > until:
            return refusal.message
        if attempt == 0:
            waiting(refusal.message)
        time.sleep(RETRY_SECONDS)
    changes = [f"StartTime=now+{round(wait_seconds)}"] if wait_seconds >= 1 else []
    # An update replaces the list, which also holds the nodes of sbatch's --exclude. An unknown list stays as it is.
    changes += [f"ExcNodeList={','.join(sorted({*exclude, *banned}))}"] if banned is not None else []
    if changes:
        slurm_client.update(job, *changes)
    return ""

"""This job: what Slurm says of it in the environment, and what its controller answers."""

import itertools
import math
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.errors import UserError

ANSWER_SECONDS = 20
"""A busy controller takes its time."""
RETRY_SECONDS = 10.0
"""Between two requests to a controller that does not answer."""
LONGEST_ASKING_SECONDS = 24 * 3600.0
"""How long a controller that is down is waited for if nothing says when the job ends: its nodes stay allocated."""
REFUSED_FOR_GOOD = re.compile(
    r"denied|disabled|invalid job|invalid user|not permitted|not supported|not found|already complet", re.IGNORECASE
)
"""In Slurm's answer, where asking again changes nothing."""
DRAINING = re.compile(r"drain", re.IGNORECASE)
UNFIT = re.compile(r"drain|down|fail", re.IGNORECASE)
"""States of a node that is to be emptied, or is lost. A * (a ping was missed) stays for a while on a node that answers
again: the preflight of the next attempt asks it."""
RUNNING = ("RUNNING", "SIGNALING", "RESIZING", "CONFIGURING", "")
"""What squeue says of a job that goes on; nothing, where it could not be asked."""


@dataclass(frozen=True)
class Job:
    """What does not change while the job runs."""

    name: str
    """As its owner and Slurm's commands know it: of an array, ARRAY_TASK."""
    restarts: int
    """How often it was queued again."""
    nodes: tuple[str, ...]
    """In Slurm's order: this script runs on the first, and so does rank 0."""
    tasks_per_node: tuple[int, ...]
    cpus_per_task: int | None
    """None: nobody asked for a number."""
    gpus_per_node: int
    overcommit: bool = False
    """More ranks on a node than CPUs."""

    @property
    def ranks(self) -> int:
        return sum(self.tasks_per_node)


def job_of(environment: Mapping[str, str]) -> Job:
    """The job that this process runs in; raises UserError outside of one."""
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        raise UserError("this runs inside a Slurm job: sbatch slurm/pretrain.sh key=value ...")
    done = _run("scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"])
    nodes = tuple(done.stdout.split())
    if not nodes:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        given = environment["SLURM_JOB_NODELIST"]
        raise UserError(
            f"SLURM_JOB_NODELIST={given!r}: scontrol names no node ({said}); see that it works on this node"
        )
    tasks = counts(environment.get("SLURM_TASKS_PER_NODE", "1"))
    cpus = int(environment["SLURM_CPUS_PER_TASK"]) if "SLURM_CPUS_PER_TASK" in environment else None
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    overcommit = False
    if (
        gpus > 1 and not {"SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"} & environment.keys()
    ):  # GPUs were asked for and no tasks: one for each GPU
        tasks = (gpus,) * len(nodes)
        cpus_on_node = min(counts(environment.get("SLURM_JOB_CPUS_PER_NODE", "1")))
        cpus, overcommit = cpus or max(1, cpus_on_node // gpus), cpus_on_node < gpus
    return Job(
        name=job_name(environment),
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=cpus,
        gpus_per_node=gpus,
        overcommit=overcommit,
    )


def job_name(environment: Mapping[str, str]) -> str:
    """The last task of an array has the array's own id as its SLURM_JOB_ID: requeued by that, all tasks would be."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def counts(text: str) -> tuple[int, ...]:
    """Slurm's numbers of each node: 2(x3),1 is 2, 2, 2, 1."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"not a list of counts: {text!r}")
        found += [int(match[1])] * int(match[2] or 1)
    return tuple(found)


def seconds_of(text: str) -> float | None:
    """Slurm's D-HH:MM:SS in seconds; None: no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def is_running(job: str) -> bool:
    """Whether Slurm lets the job go on: not where it was cancelled, preempted, or lost a node, and only ends."""
    return ask("squeue", "-h", "-j", job, "-o", "%T").strip() in RUNNING


def is_alive(job: str) -> bool:
    """Whether a job, maybe not this one, has processes."""
    return ask("squeue", "-h", "-j", job, "-o", "%T").strip() in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")


def seconds_left(job: str) -> float | None:
    """Until the time limit; None: there is none."""
    return seconds_of(ask("squeue", "-h", "-j", job, "-o", "%L"))


def kill_wait() -> float:
    """Seconds from SIGTERM to SIGKILL where Slurm ends a job."""
    found = re.search(r"KillWait\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return float(found[1]) if found else 30.0


def node_address(node: str) -> str:
    """The address by which Slurm itself reaches a node: of several, the one that works."""
    found = re.search(r" NodeAddr=(\S+)", ask("scontrol", "show", "node", "-o", node))
    return found[1] if found else node


def draining(nodes: Sequence[str]) -> list[str]:
    """Those of `nodes` that their administrator wants emptied."""
    return _in_state(nodes, DRAINING)


def unfit(nodes: Sequence[str]) -> list[str]:
    """Those of `nodes` on which nothing new should start."""
    return _in_state(nodes, UNFIT)


def _in_state(nodes: Sequence[str], state: "re.Pattern[str]") -> list[str]:
    lines = ask("sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %T").splitlines()
    return sorted({node for node, its in (line.split() for line in lines) if state.search(its)})


def can_do_without(job: Job, excluded: Sequence[str]) -> bool:
    """Whether enough nodes are left in the job's partition, and none of these was asked for by name."""
    partition = ask("squeue", "-h", "-j", job.name, "-o", "%P").strip()
    states = "idle,alloc,mix,comp"
    up = set(ask("sinfo", "-h", "-N", "-p", partition, "-t", states, "-o", "%N").split()) | set(job.nodes)
    banned, wanted = _named_nodes(job.name, "%x"), _named_nodes(job.name, "%n")
    if banned is None or wanted is None:
        return False
    return len(up - set(excluded) - set(banned)) >= len(job.nodes) and not set(excluded) & set(wanted)


def requeue(
    job: str, *, wait_seconds: float, exclude: Sequence[str], until: float, waiting: Callable[[str], None]
) -> str:
    """Queue this very job again; returns why that failed, or nothing. To be called last: Slurm ends this process.

    A controller that does not answer is asked again until `until` (of time.monotonic), the end of the job's time; of a
    job whose limit is unknown or infinite for LONGEST_ASKING_SECONDS. `waiting` is called once with its words.
    `exclude` is added to the nodes that the job's owner had excluded.
    """
    # Slurm sends SIGTERM to all that runs here, also to the command that changes the job.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if math.isinf(until):
        until = time.monotonic() + LONGEST_ASKING_SECONDS
    for attempt in itertools.count():
        banned = _named_nodes(job, "%x") if exclude else None
        done = _run("scontrol", "requeue", job)
        if done.returncode == 0:
            break
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        if REFUSED_FOR_GOOD.search(said) or time.monotonic() + RETRY_SECONDS > until:
            return said
        if attempt == 0:
            waiting(said)
        time.sleep(RETRY_SECONDS)
    changes = [f"StartTime=now+{round(wait_seconds)}"] if wait_seconds >= 1 else []
    # The list is set anew by an update: sbatch's --exclude is part of it. Where it is not known, it stays as it is.
    changes += [f"ExcNodeList={','.join(sorted({*exclude, *banned}))}"] if banned is not None else []
    if changes:
        _run("scontrol", "update", f"JobId={job}", *changes)
    return ""


def _named_nodes(job: str, field: str) -> list[str] | None:
    """The nodes that a job asked for by name (squeue's %n), or excludes (%x); None: no answer."""
    done = _run("squeue", "-h", "-j", job, "-o", field)
    names = done.stdout.strip()
    if done.returncode != 0:
        return None
    if names in ("", "(null)"):
        return []
    return ask("scontrol", "show", "hostnames", names).split() or None


def ask(*command: str) -> str:
    """What a Slurm command prints; nothing where it fails."""
    return _run(*command).stdout


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]}: no answer for {ANSWER_SECONDS} s")
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")

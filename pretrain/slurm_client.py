"""The one module that runs Slurm's commands. Every command has a time-out, and its answer is parsed here."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError

ANSWER_SECONDS = 20
"""A busy controller may take this long."""
SUBMIT_SECONDS = 120
"""sbatch may wait for a plugin of the site."""

_RUNNING = ("RUNNING", "SIGNALING", "RESIZING", "CONFIGURING", "")
"""States of a job that continues; the empty one means that squeue gave no answer."""
_ALIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")
"""States of a job that has processes."""
# slurmctld and scontrol: answers to a request that will not be granted later either.
_FINAL_REFUSAL = re.compile(
    r"denied|disabled|invalid job|invalid user|not permitted|not supported|not found|already complet", re.IGNORECASE
)
_DRAINING = re.compile(r"drain", re.IGNORECASE)
# sinfo: states of a node on which nothing new should start. A * (a missed ping) stays for a while on a node that
# answers again, so it does not count: the preflight of the next attempt checks the node.
_UNFIT = re.compile(r"drain|down|fail", re.IGNORECASE)


@dataclass(frozen=True)
class QueuedJob:
    """A job that squeue lists."""

    id: str
    name: str
    state: str
    reason: str
    """Why it waits; empty if it does not."""
    folder: str
    """The folder in which it was submitted."""


def submit(script: Path, *flags: str) -> str:
    """Submit a batch script; returns the job's id. Raises UserError with Slurm's message if it refuses."""
    # --parsable: the id, and after a semicolon the cluster's name.
    return _must("sbatch", "--parsable", *flags, str(script), seconds=SUBMIT_SECONDS).strip().split(";")[0]


def live_tasks(jobs: Sequence[str]) -> dict[int, str]:
    """The tasks of these job arrays that wait or run: index of each to the id of its array."""
    lines = _must("squeue", "--me", "--array", "--noheader", "--format=%F %K").splitlines() if jobs else []
    return {int(index): job for job, index in map(str.split, lines) if job in jobs and index.isdecimal()}


def start_after(task: str, earlier: str) -> None:
    """Let a task that is held wait until an earlier one has ended with exit code 0, as in 7_2 after 7_0.

    Raises UserError if Slurm refuses.
    """
    _must("scontrol", "update", f"JobId={task}", f"Dependency=afterok:{earlier}")


def release(job: str) -> None:
    """Let a job that was submitted with --hold start; raises UserError if Slurm refuses."""
    _must("scontrol", "release", job)


def cancel(job: str) -> None:
    """Cancel a job; a job that has ended is left as it is."""
    run("scancel", job)


def own_jobs() -> dict[str, QueuedJob]:
    """The jobs of this user that squeue lists; empty if Slurm does not answer. See `parse_jobs` for the keys."""
    return parse_jobs(_ask("squeue", "-h", "--me", "-o", "%i|%A|%j|%T|%r|%Z"))


def parse_jobs(text: str) -> dict[str, QueuedJob]:
    """Parse lines `id|job id|name|state|reason|folder`. An array task has two keys: ARRAY_TASK (7_2) and its job id."""
    jobs: dict[str, QueuedJob] = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) == 6:
            id_, job_id, name, state, reason, folder = fields
            job = QueuedJob(id_, name, state.lower(), "" if reason == "None" else reason, folder)
            jobs |= {id_: job, job_id: job}
    return jobs


def is_running(job: str) -> bool:
    """Whether a job continues: not if it was cancelled or preempted, or lost a node, and is only ending."""
    return _job_field(job, "%T") in _RUNNING


def is_alive(job: str) -> bool:
    """Whether a job still has processes. It may be another job than this process's own."""
    return _job_field(job, "%T") in _ALIVE


def seconds_left(job: str) -> float | None:
    """Seconds until the job's time limit; None if it has none."""
    return seconds_of(_job_field(job, "%L"))


def seconds_of(text: str) -> float | None:
    """Slurm's D-HH:MM:SS in seconds; None for any other text, such as UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def kill_wait() -> float:
    """Seconds from SIGTERM to SIGKILL when Slurm ends a job."""
    found = re.search(r"KillWait\s*=\s*(\d+)", _ask("scontrol", "show", "config"))
    return float(found[1]) if found else 30.0


def host_names(node_list: str) -> tuple[list[str], str]:
    """The nodes of a list such as node[1-3], and Slurm's message if the list is empty."""
    done = run("scontrol", "show", "hostnames", node_list)
    return done.stdout.split(), _message(done)


def node_address(node: str) -> str:
    """The address at which Slurm itself reaches a node: of several addresses, the one that works."""
    found = re.search(r" NodeAddr=(\S+)", _ask("scontrol", "show", "node", "-o", node))
    return found[1] if found else node


def draining(nodes: Sequence[str]) -> list[str]:
    """Those of `nodes` that their administrator is draining."""
    return _in_state(nodes, _DRAINING)


def unfit(nodes: Sequence[str]) -> list[str]:
    """Those of `nodes` on which nothing new should start."""
    return _in_state(nodes, _UNFIT)


def usable_nodes(job: str) -> set[str]:
    """The nodes of the job's partition that are up."""
    partition = _job_field(job, "%P")
    return set(_ask("sinfo", "-h", "-N", "-p", partition, "-t", "idle,alloc,mix,comp", "-o", "%N").split())


def excluded_nodes(job: str) -> list[str] | None:
    """The nodes that the job's owner or an earlier attempt excluded; None if Slurm does not answer."""
    return _node_field(job, "%x")


def required_nodes(job: str) -> list[str] | None:
    """The nodes that the job requested by name; None if Slurm does not answer."""
    return _node_field(job, "%n")


@dataclass(frozen=True)
class Refusal:
    """Slurm did not do what was asked."""

    message: str
    is_final: bool
    """Asking again does not help."""


def requeue(job: str) -> Refusal | None:
    """Requeue a job; returns None if Slurm did it."""
    done = run("scontrol", "requeue", job)
    if done.returncode == 0:
        return None
    message = _message(done)
    return Refusal(message, _FINAL_REFUSAL.search(message) is not None)


def update(job: str, *changes: str) -> None:
    """Change settings of a job that waits, such as StartTime=now+60."""
    run("scontrol", "update", f"JobId={job}", *changes)


def run(*command: str, seconds: float = ANSWER_SECONDS) -> "subprocess.CompletedProcess[str]":
    """Run a command. A time-out and a missing program look like commands that failed, with a shell's exit codes."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]}: no answer for {seconds:g} s")
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")


def _ask(*command: str) -> str:
    """The output of a command; empty if it fails."""
    done = run(*command)
    return done.stdout if done.returncode == 0 else ""


def _must(*command: str, seconds: float = ANSWER_SECONDS) -> str:
    """The output of a command of a login node; raises UserError if it fails."""
    done = run(*command, seconds=seconds)
    if done.returncode == 127:
        raise UserError(f"`{command[0]}` not found on PATH", "run this on a Slurm login node")
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` fails: {' '.join(done.stderr.split())}")
    return done.stdout


def _message(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line that a failed command printed."""
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]


def _job_field(job: str, field: str) -> str:
    return _ask("squeue", "-h", "-j", job, "-o", field).strip()


def _node_field(job: str, field: str) -> list[str] | None:
    done = run("squeue", "-h", "-j", job, "-o", field)
    names = done.stdout.strip()
    if done.returncode != 0:
        return None
    if names in ("", "(null)"):
        return []
    return host_names(names)[0] or None


def _in_state(nodes: Sequence[str], state: "re.Pattern[str]") -> list[str]:
    lines = _ask("sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %T").splitlines()
    return sorted({node for node, its in (line.split() for line in lines) if state.search(its)})

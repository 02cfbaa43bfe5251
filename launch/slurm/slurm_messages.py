"""The messages of srun and slurmstepd, and what they mean: the only texts that decide anything in this package.

Seen with Slurm 22.05. Each pattern names the source file that prints the message.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# srun, src/plugins/launch/slurm/launch_slurm.c (from 23.02 on src/srun/launch.c), on the end of a task:
#   srun: error: node2: task 1: Killed              srun: error: node2: tasks 1-3: Exited with exit code 2
_TASK = re.compile(r"srun: error: (?P<node>[^\s:]+): tasks? (?P<rank>\d+)[-,\d]*: (?P<message>.*)")
_NODE = (
    # srun, src/api/step_launch.c: srun: error: Task launch for StepId=5.0 failed on node node2: ...
    re.compile(r"srun: error: .*failed on node (?P<node>[^\s:]+): (?P<message>.*)"),
    # srun, src/api/step_launch.c: srun: error: Node failure on node2
    re.compile(r"srun: error: (?P<message>[Nn]ode failure) on (?P<node>\S+)"),
)
# srun, src/api/step_launch.c, which gives the node's number within the job:
#   srun: error: Cannot communicate with node 1.  Aborting job.
#   srun: error: Aborting, io error and missing step on node 1
_NODE_NUMBER = re.compile(r"srun: error: (?:Cannot communicate with|Aborting, .* on) node (?P<number>\d+)")
# srun, not useful to users: a plugin that is not installed, and signals that every step gets.
_NOISE = re.compile(r"can not load PMIx|got SIGCONT")
# srun names a signal as glibc's strsignal does.
_KILLED = re.compile(r"Killed|Bus error|Segmentation fault|exit code 13[4-9]$")
_ASKED_TO_STOP = {"Hangup": 129, "Interrupt": 130, "User defined signal 1": 138, "Terminated": 143}
"""Signals that ask for a stop, and the exit codes that a shell shows for them."""
_STOP_SIGNAL = re.compile(rf"^({'|'.join(_ASKED_TO_STOP)})$|exit code ({'|'.join(map(str, _ASKED_TO_STOP.values()))})$")
_EXIT_CODE = re.compile(r"exit code (\d+)$")
# slurmstepd, src/slurmd/slurmstepd/req.c, into the job's log:
#   slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***
_JOB_END = re.compile(r"\*\*\* JOB \S+ ON \S+ (CANCELLED|FAILED) AT \S+(?: DUE TO (.*?))? \*\*\*")


@dataclass(frozen=True)
class TaskFailure:
    """srun's report on a rank that failed, or on a node that could not be used."""

    node: str
    message: str
    """srun's."""
    time: float
    rank: int | None = None
    """None: the report is on the node."""

    @property
    def was_killed(self) -> bool:
        """Whether a signal that a faulty node can cause killed it."""
        return _KILLED.search(self.message) is not None

    @property
    def stop_signal_code(self) -> int | None:
        """The exit code of a rank that a request to stop ended; None: it ended otherwise."""
        if self.rank is None or not (match := _STOP_SIGNAL.search(self.message)):
            return None
        return int(match[2]) if match[2] else _ASKED_TO_STOP[match[1]]

    @property
    def exit_code(self) -> int | None:
        """The exit code that srun names."""
        match = _EXIT_CODE.search(self.message)
        return int(match[1]) if match else None


def failure_in(line: str, nodes: Sequence[str], now: float) -> TaskFailure | None:
    """The failure that a line of srun reports."""
    if match := _TASK.search(line):
        return TaskFailure(match["node"], match["message"].strip(), now, int(match["rank"]))
    for pattern in _NODE:
        if match := pattern.search(line):
            return TaskFailure(match["node"], match["message"].strip(), now)
    if match := _NODE_NUMBER.search(line):
        return TaskFailure(nodes[int(match["number"])], "Slurm's process for this step there is gone", now)
    return None


def is_noise(line: str) -> bool:
    """Whether this line of srun's output is noise that is not shown to users."""
    return _NOISE.search(line) is not None


class EndCause(StrEnum):
    """Why Slurm ends a job."""

    PREEMPTION = "preemption"
    NODE_FAILURE = "node failure"
    TIME_LIMIT = "time limit"
    CANCELLED = "cancelled"
    OTHER = "other"


@dataclass(frozen=True)
class JobEnd:
    """Slurm ends the job."""

    cause: EndCause = EndCause.OTHER
    message: str = ""
    """Slurm's reason."""

    def __str__(self) -> str:
        return f"Slurm ended the job ({self.message})" if self.message else "Slurm ended the job"


def job_end_in(lines: Sequence[str]) -> JobEnd | None:
    """The last end of a job that slurmstepd reports in these lines of its log."""
    for line in reversed(lines):
        if match := _JOB_END.search(line):
            message = (match[2] or match[1]).lower()
            return JobEnd(next((cause for cause in EndCause if cause in message), EndCause.OTHER), message)
    return None

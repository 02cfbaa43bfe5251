"""What Slurm wants of the batch script of a job: that it stop in time, move off a node, or end."""

import re
import signal
import sys
import time
from pathlib import Path

from launch import slurm_job
from launch.ending import last_lines
from launch.slurm_job import Job

MARGIN_SECONDS = 20.0
"""Before the time limit, for queueing the job again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""By which Slurm, or a person, asks for an end."""
LOOK_SECONDS = 20.0
"""Between two questions to Slurm whether a node is to be emptied."""


class Signals:
    """What Slurm wants of this process."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._stop: str | None = None
        self._give_up_at: float | None = None
        self._look_again = time.monotonic() + LOOK_SECONDS
        self.slurm_ends: str | None = None
        """Why Slurm ends the job, if it does."""
        for number in SIGNALS:
            signal.signal(number, lambda received, _: self._seen.append(received))

    @property
    def stop(self) -> str | None:
        """Why the ranks were asked to stop."""
        return self.slurm_ends or self._stop

    def look(self, job: Job) -> str | None:
        """stop: the ranks are to save and stop; leave: there is no more time."""
        if self._seen:
            received = signal.Signals(self._seen.pop(0))
            self._heed(received, job)
        elif self._stop is None and self.slurm_ends is None and time.monotonic() > self._look_again:
            self._look_again = time.monotonic() + LOOK_SECONDS
            if leaving := slurm_job.draining(job.nodes):
                self._ask(f"{' '.join(leaving)}: to be emptied (drained)", job)
        if self._give_up_at is not None and time.monotonic() > self._give_up_at:
            return "leave"
        return "stop" if self._stop is not None else None

    def note_end(self, job: Job) -> None:
        """The step is over: maybe because Slurm ends the job, which it may not have said yet."""
        while self._seen:
            self._heed(signal.Signals(self._seen.pop(0)), job)
        if self.slurm_ends is None and not slurm_job.is_running(job.name):
            self.slurm_ends = why_slurm_ends()

    def _heed(self, received: signal.Signals, job: Job) -> None:
        if received != signal.SIGUSR1 and not slurm_job.is_running(job.name):
            # The ranks were told by Slurm too.
            self.slurm_ends = why_slurm_ends()
            self._give_up_at = time.monotonic() + slurm_job.kill_wait() - 3
            say(f"== {self.slurm_ends}: waiting for the ranks to save")
        else:
            self._ask(f"asked by {received.name}, as before the time limit", job)

    def _ask(self, why: str, job: Job) -> None:
        if self._stop is not None:
            return
        self._stop = why
        left = slurm_job.seconds_left(job.name)
        soon = f"; {left:.0f} s are left" if left is not None and left < 3600 else ""
        say(f"== {why}: asking the ranks to save and stop{soon}")
        if left is not None:
            self._give_up_at = time.monotonic() + max(left - MARGIN_SECONDS, 0)


def ignore_until_gone() -> None:
    """For a process that has done its work, and only ends: its exit code stays its own.

    Handlers in Python do not do: the interpreter takes them away while it cleans up, and Slurm would see a process
    that a signal killed.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def why_slurm_ends() -> str:
    """In Slurm's words, which it writes into this job's log."""
    own_log = Path("/proc/self/fd/1").resolve()
    for line in reversed(last_lines(own_log, 50)) if own_log.is_file() else []:
        if match := re.search(r"\*\*\* JOB \S+ ON \S+ (CANCELLED|FAILED) AT \S+(?: DUE TO (.*?))? \*\*\*", line):
            return f"Slurm ended the job ({(match[2] or match[1]).lower()})"
    return "Slurm ended the job"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

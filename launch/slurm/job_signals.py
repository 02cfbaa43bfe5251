"""What Slurm wants of the batch script of a job: that it stop in time, move off a node, or end."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.slurm import job as slurm_job
from launch.slurm.job import Job
from launch.slurm.outcome import last_lines
from launch.termination import SIGNALS

POLL_SECONDS = 0.2
MARGIN_SECONDS = 20.0
"""Before the time limit, for queueing the job again."""
PIPE = "PRETRAIN_SIGNALS_PIPE"
"""Environment variable with the file descriptor from which signals are read that the batch script's shell got: it
listens from its first line on, while Python takes seconds to start."""
EARLY_SECONDS = 90.0
"""Slurm sends the signal before a time limit up to a minute earlier than asked for."""
LOOK_SECONDS = 20.0
"""Between two questions to Slurm whether a node is to be emptied."""


class Signals:
    """What Slurm wants of this process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._seen: list[int] = []
        self._pipe = int(environment[PIPE]) if PIPE in environment else None
        self._stop: str | None = None
        self.signal_seconds = 0.0
        """How long before the time limit Slurm sends its signal (cluster.signal_seconds)."""
        self.time_is_up = False
        """The ranks were asked to stop because the time limit is near."""
        self._give_up_at: float | None = None
        self._look_again = time.monotonic() + LOOK_SECONDS
        self.slurm_ends: str | None = None
        """Why Slurm ends the job, if it does."""
        if self._pipe is not None:
            os.set_blocking(self._pipe, False)
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, received: int, _: object) -> None:
        if self._pipe is None:  # else the shell notes it too
            self._seen.append(received)

    def _next(self) -> signal.Signals | None:
        """The next signal that came."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                self._seen += [signal.Signals[f"SIG{name}"] for name in os.read(self._pipe, 4096).decode().split()]
        return signal.Signals(self._seen.pop(0)) if self._seen else None

    @property
    def stop(self) -> str | None:
        """Why the ranks were asked to stop."""
        return self.slurm_ends or self._stop

    def look(self, job: Job) -> str | None:
        """stop: the ranks are to save and stop; leave: there is no more time."""
        if (received := self._next()) is not None:
            self._heed(received, job)
        elif self._stop is None and self.slurm_ends is None and time.monotonic() > self._look_again:
            self._look_again = time.monotonic() + LOOK_SECONDS
            if leaving := slurm_job.draining(job.nodes):
                self._ask(f"{' '.join(leaving)}: to be emptied (drained)", job)
        if self._give_up_at is not None and time.monotonic() > self._give_up_at:
            return "leave"
        return "stop" if self._stop is not None else None

    def wait(self, seconds: float, job: Job) -> bool:
        """Wait so long; False, and at once, if the job is to stop."""
        limit = time.monotonic() + seconds
        while self.look(job) is None and self.slurm_ends is None:
            if time.monotonic() >= limit:
                return True
            time.sleep(min(POLL_SECONDS, seconds))
        return False

    def note_end(self, job: Job) -> None:
        """The step is over: maybe because Slurm ends the job, which it may not have said yet."""
        while (received := self._next()) is not None:
            self._heed(received, job)
        if self.slurm_ends is None and not slurm_job.is_running(job.name):
            self.slurm_ends = why_slurm_ends() or SLURM_ENDED

    def _heed(self, received: signal.Signals, job: Job) -> None:
        if self.slurm_ends is not None:
            return
        if received != signal.SIGUSR1 and not slurm_job.is_running(job.name):
            # The ranks were told by Slurm too.
            self.slurm_ends = why_slurm_ends() or SLURM_ENDED
            self._give_up_at = time.monotonic() + slurm_job.kill_wait() - 3
            say(f"== {self.slurm_ends}: waiting for the ranks to save")
        else:
            self._ask(f"asked by {received.name}", job)

    def _ask(self, why: str, job: Job) -> None:
        if self._stop is not None:
            return
        self._stop = why
        left = slurm_job.seconds_left(job.name)
        self.time_is_up = left is not None and left <= self.signal_seconds + EARLY_SECONDS
        soon = f"; {left:.0f} s are left" if left is not None and left < 3600 else ""
        say(f"== {why}: asking the ranks to save and stop{soon}")
        if left is not None:
            self._give_up_at = time.monotonic() + max(left - MARGIN_SECONDS, 0)


def why_slurm_ends() -> str | None:
    """In Slurm's words, which it writes into this job's log; None if there are none."""
    own_log = Path("/proc/self/fd/1").resolve()
    return slurm_end_in(last_lines(own_log, 50)) if own_log.is_file() else None


def slurm_end_in(lines: Sequence[str]) -> str | None:
    """Why Slurm ended the newest attempt, by the last lines of a job's log."""
    for line in reversed(lines):
        if match := _END.search(line):
            return f"{SLURM_ENDED} ({(match[2] or match[1]).lower()})"
        if line.startswith("== attempt "):  # what stands before is not about this one
            break
    return None


def after_slurm_ends(why: str) -> str:
    """What becomes of a job that Slurm ended, as far as that is known."""
    if "preempt" in why:
        return "Slurm queues it again if the partition's PreemptMode is REQUEUE"
    if "node fail" in why:
        return "Slurm queues it again"
    return "it is not queued again; sbatch the same command to continue"


SLURM_ENDED = "Slurm ended the job"
_END = re.compile(r"\*\*\* JOB \S+ ON \S+ (CANCELLED|FAILED) AT \S+(?: DUE TO (.*?))? \*\*\*")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

"""The signals that a job gets from Slurm: stop before the time limit, leave a node, or end."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launch.slurm.job import SlurmJob
from launch.slurm.outcome import last_lines
from launch.slurm.slurm_messages import EndCause, JobEnd, job_end_in
from launch.termination import SIGNALS
from pretrain import slurm_client

POLL_SECONDS = 0.2
MARGIN_SECONDS = 20.0
"""Time before the limit that is kept for queueing the job again."""
PIPE = "PRETRAIN_SIGNALS_PIPE"
"""Environment variable with the file descriptor from which this process reads the signals that the batch script's shell
got: the shell listens from its first line on, while Python takes seconds to start."""
EARLY_SECONDS = 90.0
"""Slurm may send the signal before a time limit up to a minute earlier than requested."""
LOOK_SECONDS = 20.0
"""Time between two requests to Slurm for the nodes that are being drained."""


class Signals:
    """The requests of Slurm to this process."""

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
        self.job_end: JobEnd | None = None
        """Slurm ends the job."""
        self._log_start = log_bytes()
        """The position in the job's log at which the current attempt begins, in bytes."""
        if self._pipe is not None:
            os.set_blocking(self._pipe, False)
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, received: int, _: object) -> None:
        if self._pipe is None:  # else the shell notes it too
            self._seen.append(received)

    def _next(self) -> signal.Signals | None:
        """The next signal that arrived."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                self._seen += [signal.Signals[f"SIG{name}"] for name in os.read(self._pipe, 4096).decode().split()]
        return signal.Signals(self._seen.pop(0)) if self._seen else None

    def begin_attempt(self) -> int:
        """Mark the end of the job's log as the start of a new attempt; returns the log's size in bytes."""
        self._log_start = log_bytes()
        return self._log_start

    @property
    def stop(self) -> str | None:
        """Why the ranks were asked to stop."""
        return str(self.job_end) if self.job_end is not None else self._stop

    def look(self, job: SlurmJob) -> str | None:
        """stop: the ranks are to save and stop. leave: no time is left."""
        if (received := self._next()) is not None:
            self._heed(received, job)
        elif self._stop is None and self.job_end is None and time.monotonic() > self._look_again:
            self._look_again = time.monotonic() + LOOK_SECONDS
            if leaving := slurm_client.draining(job.nodes):
                self._ask(f"{' '.join(leaving)}: being drained", job)
        if self._give_up_at is not None and time.monotonic() > self._give_up_at:
            return "leave"
        return "stop" if self._stop is not None else None

    def wait(self, seconds: float, job: SlurmJob) -> bool:
        """Wait for this long; returns False, and at once, if the job is to stop."""
        limit = time.monotonic() + seconds
        while self.look(job) is None and self.job_end is None:
            if time.monotonic() >= limit:
                return True
            time.sleep(min(POLL_SECONDS, seconds))
        return False

    def note_end(self, job: SlurmJob) -> None:
        """The step is over, maybe because Slurm ends the job, which may not be in the log yet."""
        while (received := self._next()) is not None:
            self._heed(received, job)
        if self.job_end is None and not slurm_client.is_running(job.name):
            self.job_end = job_end_since(self._log_start) or JobEnd()

    def _heed(self, received: signal.Signals, job: SlurmJob) -> None:
        if self.job_end is not None:
            return
        if received != signal.SIGUSR1 and not slurm_client.is_running(job.name):
            # Slurm sent the signal to the ranks too.
            self.job_end = job_end_since(self._log_start) or JobEnd()
            self._give_up_at = time.monotonic() + slurm_client.kill_wait() - 3
            say(f"== {self.job_end}: waiting for the ranks to save")
        else:
            self._ask(f"asked by {received.name}", job)

    def _ask(self, why: str, job: SlurmJob) -> None:
        if self._stop is not None:
            return
        self._stop = why
        left = slurm_client.seconds_left(job.name)
        self.time_is_up = left is not None and left <= self.signal_seconds + EARLY_SECONDS
        soon = f"; {left:.0f} s are left" if left is not None and left < 3600 else ""
        say(f"== {why}: asking the ranks to save and stop{soon}")
        if left is not None:
            self._give_up_at = time.monotonic() + max(left - MARGIN_SECONDS, 0)


def log_bytes() -> int:
    """The size of the job's log, into which this process writes; 0 if it writes elsewhere."""
    own_log = _own_log()
    return own_log.stat().st_size if own_log is not None else 0


def job_end_since(start: int) -> JobEnd | None:
    """The end of the job that Slurm reported in its log, beyond the first `start` bytes."""
    own_log = _own_log()
    return job_end_in(last_lines(own_log, 50, start)) if own_log is not None else None


def _own_log() -> Path | None:
    own_log = Path("/proc/self/fd/1").resolve()
    return own_log if own_log.is_file() else None


def what_follows(end: JobEnd) -> str:
    """Whether Slurm queues a job that it ended again, as far as that is known."""
    if end.cause is EndCause.PREEMPTION:
        return "Slurm queues it again if the partition's PreemptMode is REQUEUE"
    if end.cause is EndCause.NODE_FAILURE:
        return "Slurm queues it again"
    return "it is not queued again; sbatch the same command to continue"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

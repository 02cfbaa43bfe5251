"""The signals that end a job, and how a process that has finished its work ignores them."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""By which Slurm, or a person, asks for an end."""


def ignore_until_gone() -> None:
    """For a process that has done its work, and only ends: its exit code stays its own.

    Handlers in Python do not do: the interpreter takes them away while it cleans up, and Slurm would see a process
    that a signal killed.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

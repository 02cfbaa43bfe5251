"""The signals that end a job, and how a process that has finished its work ignores them."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Slurm or a person sends them to stop a job."""


def ignore_until_gone() -> None:
    """Ignore these signals until the process exits, so that they do not change the exit code of finished work.

    Python handlers are not enough: the interpreter removes them when it shuts down, and Slurm would see a process
    killed by a signal.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

"""Processes that get a signal again and again while they end."""

import signal
import subprocess
from collections.abc import Sequence

from tests.support.runs import ROOT


def run_pestered(command: Sequence[str], by: signal.Signals | None = None) -> tuple[int, str]:
    """A process's exit code and its first line, from when on it may get a signal all the time, until it is gone."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.readline()
        while by is not None and process.poll() is None:
            process.send_signal(by)
        return process.wait(60), printed

"""Processes that receive a signal repeatedly while they exit."""

import signal
import subprocess
from collections.abc import Sequence

from tests.support.runs import ROOT


def run_pestered(command: Sequence[str], by: signal.Signals | None = None) -> tuple[int, str]:
    """A process's exit code and its first line. From that line on it receives the signal repeatedly until it exits."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.readline()
        while by is not None and process.poll() is None:
            process.send_signal(by)
        return process.wait(60), printed

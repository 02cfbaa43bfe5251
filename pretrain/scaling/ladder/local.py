"""Runs the cells of a ladder on this machine, some at a time, each in a process of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from data_pipeline.child_process import die_with_parent
from pretrain.exit_codes import ExitCode, exit_code_of
from pretrain.run.outcome import read_outcome
from pretrain.scaling.ladder.cells import Cell, checkpoint_of

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SECONDS_BETWEEN_LOOKS = 0.2


def is_finished(cell: Cell) -> bool:
    """Whether the last attempt of this cell trained to the end."""
    outcome = read_outcome(Path(cell.run_dir))
    return outcome is not None and outcome.state == "finished"


def train_command(cell: Cell) -> list[str]:
    return [sys.executable, "-m", "pretrain", "train", *cell.overrides]


class LocalRuns:
    """Trains cells, `at_once` at a time. A branch starts when its trunk has saved the checkpoint that it continues.

    A signal is passed on to all runs, which save and stop; then no other starts.
    """

    def __init__(
        self,
        folder: Path,
        cells: Sequence[Cell],
        at_once: int,
        say: Callable[[str], None],
        command: Callable[[Cell], Sequence[str]] = train_command,
    ) -> None:
        self._folder, self._at_once, self._say, self._command = folder, at_once, say, command
        self._by_name = {cell.name: cell for cell in cells}
        missing = [cell for cell in cells if not is_finished(cell)]
        # Several at a time: the longest first, so that none trains alone at the end.
        self._waiting = missing if at_once == 1 else sorted(missing, key=lambda cell: -cell.trained_flops)
        self._number = len(self._waiting)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._asked = False
        self.codes: dict[str, int] = {}
        """Exit codes of the runs that ended, by the name of their cell."""

    def run(self) -> int:
        """Train what is missing; the exit code: stopped, else failed if a run failed, else done."""
        previous = {number: signal.signal(number, self._pass_on) for number in FORWARDED if not _is_ignored(number)}
        try:
            while self._running or self._start_some():
                time.sleep(SECONDS_BETWEEN_LOOKS)
                self._collect()
                self._start_some()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._asked or ExitCode.STOPPED in self.codes.values():
            return ExitCode.STOPPED
        for cell in self._waiting:
            self._say(f"{cell.name}: not started, because its trunk {cell.trunk} did not reach step {cell.branch_step}")
        return ExitCode.FAILED if self._waiting or any(self.codes.values()) else ExitCode.DONE

    def _start_some(self) -> bool:
        """Start as many as there is room for; returns whether any runs."""
        ready = [cell for cell in self._waiting if self._is_ready(cell)]
        while ready and len(self._running) < self._at_once and not self._asked:
            cell = ready.pop(0)
            self._waiting.remove(cell)
            self._start(cell)
        return bool(self._running)

    def _is_ready(self, cell: Cell) -> bool:
        if cell.trunk is None or (Path(cell.run_dir) / "checkpoints").is_dir():
            return True
        return Path(checkpoint_of(self._by_name[cell.trunk], cell.branch_step)).is_dir()

    def _start(self, cell: Cell) -> None:
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{cell.name}.log"
        with log.open("ab") as stream:
            # A process group of its own: a Ctrl-C reaches it once, from here.
            self._running[cell.name] = subprocess.Popen(
                self._command(cell),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                preexec_fn=die_with_parent,
                process_group=0,
            )
        done = self._number - len(self._waiting)
        self._say(f"{done} of {self._number}: {cell.name} started, {log}")

    def _collect(self) -> None:
        for name, process in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[name]
            self.codes[name] = exit_code_of(process.returncode)
            outcome = read_outcome(Path(self._by_name[name].run_dir))
            reason = outcome.reason if outcome is not None else ""
            self._say(f"{name}: {reason or f'ended with exit code {self.codes[name]}'}")

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        for process in self._running.values():
            process.send_signal(number)


def _is_ignored(number: signal.Signals) -> bool:
    """SIGHUP stays ignored under nohup."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN

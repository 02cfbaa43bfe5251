"""The processes of the other ranks on this machine: their end is seen, and those that no longer answer are killed."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from pretrain.distributed.watchdog.rank_status import RankProcess

SHOW_STACKS = signal.SIGUSR2
SHOW_SECONDS = 0.5


class LocalRanks:
    """Processes of other ranks that this one can see by their process ids."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank = rank
        self._expected = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))) - 1
        self._known: dict[int, psutil.Process] = {}
        self._gone: set[int] = set()
        self._vanished: set[int] = set()
        """Ranks whose process had ended before this rank could look at it."""

    @property
    def all_known(self) -> bool:
        return len(self._known) + len(self._gone) + len(self._vanished) >= self._expected

    def add(self, processes: Iterable[RankProcess]) -> None:
        seen = {self._rank, *self._known, *self._gone, *self._vanished}
        for process in processes:
            if process.rank not in seen:
                try:
                    self._known[process.rank] = psutil.Process(process.pid)
                except psutil.NoSuchProcess:
                    self._vanished.add(process.rank)

    def ended(self, ranks: Iterable[int] | None = None) -> list[int]:
        """Those of `ranks`, or of all, that were on this machine and no longer run."""
        asked = [*self._known, *self._vanished] if ranks is None else ranks
        return [rank for rank in asked if rank in self._vanished or self._has_ended(rank)]

    def forget(self, rank: int) -> None:
        """Stop watching a rank that ended normally."""
        self._known.pop(rank, None)
        self._vanished.discard(rank)
        self._gone.add(rank)

    def _has_ended(self, rank: int) -> bool:
        process = self._known.get(rank)
        if process is None:
            return False
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def kill(self, ranks: Iterable[int]) -> None:
        """Kill those of `ranks` that are on this machine, after they had a moment to print their stacks."""
        found = [self._known[rank] for rank in ranks if rank in self._known]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.send_signal(SHOW_STACKS)
        if found:
            time.sleep(SHOW_SECONDS)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()  # no other signal reaches a stopped process


def machine_name() -> str:
    """The same text for processes that see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def kernel_kills() -> int:
    """The number of processes that this machine's kernel killed to free memory since it started."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, value = line.split()
            if name == "oom_kill":
                return int(value)
    return 0

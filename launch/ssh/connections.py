"""Ranks on several hosts, each behind one connection (ssh, or a replacement for it) with a `launch.ssh.host_agent`."""

import contextlib
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.ssh.hostfile import Host

ALIVE_SECONDS = 5.0
MEETING_SECONDS = 60.0
"""Time for ssh to connect and for Python to start on the host."""
END_SECONDS = 10.0
LOST = 255
"""Exit code of ranks whose host is no longer reached: that of ssh."""

Events = queue.Queue[tuple[int, bytes | None]]
"""Lines of the hosts, with their index in the hostfile; None: a connection ended."""


class HostUnreachable(Exception):
    """A connection failed; the text names the host."""


class Connection:
    """One host."""

    def __init__(self, host: Host, index: int, ssh: Sequence[str], events: "Events") -> None:
        self.host, self.index = host, index
        here = shlex.join(["cd", str(Path.cwd())])
        agent = shlex.join([sys.executable, "-m", "launch.ssh.host_agent"])
        path = shlex.quote(f"PYTHONPATH={_python_path()}")
        self._process = subprocess.Popen(
            [*ssh, host.name, f"{here} && exec env {path} {agent}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to forward; ssh would just end
        )
        self._events = events
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, line: bytes) -> None:
        """Send a line. No error if the host is gone: the end of its output shows that."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the agent, and with it what is left of its ranks."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put((self.index, line.rstrip(b"\n")))
        self._events.put((self.index, None))


class Ranks:
    """Processes on several hosts: they are started together, and their output is read here."""

    def __init__(self, hosts: Sequence[Host], ssh: Sequence[str]) -> None:
        """Connect to all hosts; raises HostUnreachable."""
        self._hosts = hosts
        self._events: Events = queue.Queue()
        self._connections = [Connection(host, index, ssh, self._events) for index, host in enumerate(hosts)]
        try:
            self.port = self._meet()[0]
        except HostUnreachable:
            self.close()
            raise
        self.host_of: dict[int, Host] = {}
        self._running: set[int] = set()
        self._alive_at = time.monotonic()

    def start(self, command: Sequence[str], environments: Sequence[Mapping[int, Mapping[str, str]]]) -> None:
        """Start the ranks of each host with their variables."""
        for connection, ranks in zip(self._connections, environments, strict=True):
            self.host_of |= dict.fromkeys(ranks, connection.host)
            order = {"command": list(command), "directory": str(Path.cwd()), "ranks": ranks}
            connection.say(json.dumps(order).encode())
        self._running = set(self.host_of)

    def signal(self, number: int) -> None:
        for connection in self._connections:
            connection.say(b"signal %d" % number)

    @property
    def running(self) -> bool:
        return bool(self._running)

    def hear(self, seconds: float, printed: Callable[[int, bytes], None]) -> dict[int, int]:
        """Wait at most this long for a line of any rank; returns the exit codes of the ranks that ended."""
        if time.monotonic() - self._alive_at > ALIVE_SECONDS:
            self._alive_at = time.monotonic()
            for connection in self._connections:
                connection.say(b"")
        try:
            index, line = self._events.get(timeout=seconds)
        except queue.Empty:
            return {}
        if line is None:
            gone = {rank: LOST for rank in self._running if self.host_of[rank] is self._hosts[index]}
            self._running -= set(gone)
            return gone
        kind, _, rest = line.partition(b" ")
        rank, _, text = rest.partition(b" ")
        if kind == b"o":
            printed(int(rank), text)
        elif kind == b"x":
            self._running.discard(int(rank))
            return {int(rank): int(text)}
        return {}

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _meet(self) -> list[int]:
        """A free port of each host; raises HostUnreachable with the names of the hosts that did not answer."""
        ports: dict[int, int] = {}
        limit = time.monotonic() + MEETING_SECONDS
        while len(ports) < len(self._hosts):
            try:
                index, line = self._events.get(timeout=max(0.0, limit - time.monotonic()))
            except queue.Empty:
                break
            if line is None:
                raise HostUnreachable(self._hosts[index].name)
            if line.startswith(b"port "):  # else a greeting of the shell there
                ports[index] = int(line.split()[1])
        late = [host.name for index, host in enumerate(self._hosts) if index not in ports]
        if late:
            raise HostUnreachable(", ".join(late))
        return [ports[index] for index in range(len(self._hosts))]


def _python_path() -> str:
    """The variable with which Python finds the same sources there, whatever their folder is."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(Path(__file__).resolve().parents[2]), *([before] if before else [])])

"""The agent on one host for a start over ssh. `launch.ssh.hosts` starts it on each host and exchanges lines with it.

Lines on stdin: first the order as JSON, then `signal NUMBER`, or an empty line as a sign of life. Lines on stdout:
`port NUMBER`, a port that is free here; `o RANK TEXT`, the output of a rank; `x RANK CODE`, its exit code. When the
launcher is gone, the agent kills its ranks.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import BinaryIO

from pretrain.exit_codes import exit_code_of

SILENT_SECONDS = 45.0
"""Time without a line from the launcher, for example because the network failed."""
LAST_WORDS_SECONDS = 2.0
"""A process that a rank started may outlive it and keep its output open."""

_out = threading.Lock()


def main() -> int:
    # The launcher forwards signals. A function, because the ranks would inherit SIG_IGN.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    _say(b"port %d" % _free_port())
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    order = lines.get()
    if not order:
        return 0
    ranks = _start(json.loads(order))
    try:
        _obey(lines, ranks)
    finally:
        _signal_all(ranks, signal.SIGKILL)
    return 0


def _start(order: Mapping[str, object]) -> dict[int, "subprocess.Popen[bytes]"]:
    """Start the ranks of an order: {"command": [...], "directory": ..., "ranks": {RANK: {variable: value}}}."""
    command, directory, environments = order["command"], order["directory"], order["ranks"]
    assert isinstance(command, list) and isinstance(directory, str) and isinstance(environments, dict)
    ranks = {}
    for name, environment in environments.items():
        rank = int(name)
        ranks[rank] = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what a rank started can be ended with it
        )
        threading.Thread(target=_see_out, args=(rank, ranks[rank]), daemon=True).start()
    return ranks


def _obey(lines: "queue.Queue[bytes]", ranks: Mapping[int, "subprocess.Popen[bytes]"]) -> None:
    """Forward the launcher's signals to the ranks, until the launcher exits or sends no line for SILENT_SECONDS."""
    while True:
        try:
            line = lines.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            return
        if not line:
            return
        if line.startswith(b"signal "):
            _signal_all(ranks, int(line.split()[1]))


def _signal_all(ranks: Mapping[int, "subprocess.Popen[bytes]"], number: int) -> None:
    """SIGKILL goes to all that the ranks started, also of those that ended; other signals to the ranks alone."""
    for process in ranks.values():
        try:
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        except ProcessLookupError:
            pass


def _see_out(rank: int, process: "subprocess.Popen[bytes]") -> None:
    """Pass on the output of a rank, then its exit code."""
    relay = threading.Thread(target=_relay, args=(rank, process), daemon=True)
    relay.start()
    code = process.wait()
    relay.join(LAST_WORDS_SECONDS)
    _say(b"x %d %d" % (rank, exit_code_of(code)))


def _relay(rank: int, process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        _say(b"o %d %s" % (rank, line.rstrip(b"\n")))


def _listen(lines: "queue.Queue[bytes]") -> None:
    """Read lines from the launcher; an empty one if it is gone."""
    source: BinaryIO = sys.stdin.buffer
    for line in source:
        lines.put(line)
    lines.put(b"")


def _say(line: bytes) -> None:
    with _out:
        try:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
        except OSError:
            pass  # the launcher is gone: stdin says so too


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())

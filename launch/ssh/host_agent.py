"""This host's part of a start over ssh: `launch.ssh.hosts` starts one on each host and talks to it over a connection.

On stdin come lines: first the order as JSON, then `signal NUMBER`, or an empty line as a sign of life. On stdout go
lines: `port NUMBER`, one that is free here; `o RANK TEXT`, what a rank printed; `x RANK CODE`, how it ended. When the
launcher is gone, so are the ranks: nothing stays behind.
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
"""Without a word from the launcher, as where the network broke."""
LAST_WORDS_SECONDS = 2.0
"""What a rank started may outlive it and hold its output open."""

_out = threading.Lock()


def main() -> int:
    # Signals are the launcher's to forward. A function, as the ranks would inherit SIG_IGN.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    _say(b"port %d" % _free_port())
    words: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(words,), daemon=True).start()
    order = words.get()
    if not order:
        return 0
    ranks = _start(json.loads(order))
    try:
        _obey(words, ranks)
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


def _obey(words: "queue.Queue[bytes]", ranks: Mapping[int, "subprocess.Popen[bytes]"]) -> None:
    """Until the launcher has nothing more to say."""
    while True:
        try:
            word = words.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            return
        if not word:
            return
        if word.startswith(b"signal "):
            _signal_all(ranks, int(word.split()[1]))


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
    """Pass on what a rank prints, then how it ended."""
    relay = threading.Thread(target=_relay, args=(rank, process), daemon=True)
    relay.start()
    code = process.wait()
    relay.join(LAST_WORDS_SECONDS)
    _say(b"x %d %d" % (rank, exit_code_of(code)))


def _relay(rank: int, process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        _say(b"o %d %s" % (rank, line.rstrip(b"\n")))


def _listen(words: "queue.Queue[bytes]") -> None:
    """Lines from the launcher; an empty word where it is gone."""
    source: BinaryIO = sys.stdin.buffer
    for line in source:
        words.put(line)
    words.put(b"")


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

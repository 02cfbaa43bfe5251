"""Whether a signal arrived that Python handles, known also while native code keeps its handler from running."""

import contextlib
import signal
import socket


class SignalPipe:
    """The interpreter's C handler writes each signal's number into a socket, which any thread can read."""

    def __init__(self) -> None:
        self._read_end, self._write_end = socket.socketpair()
        self._read_end.setblocking(False)
        self._write_end.setblocking(False)
        self._received = False

    def open(self) -> None:
        """Called from the main thread."""
        signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        """Called from the main thread."""
        signal.set_wakeup_fd(-1)

    def has_signal(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._received = bool(self._read_end.recv(64)) or self._received
        return self._received

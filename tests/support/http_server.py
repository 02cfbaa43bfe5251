"""A folder served over HTTP by a thread, with the faults that real servers and networks have."""

import base64
import collections
import http.server
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Fault = Callable[["Handler", bytes], bool]
"""Sends a faulty response and returns True, or returns False to send the right response."""


class Served:
    """The state of the server that a test reads and sets."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.requests: collections.Counter[str] = collections.Counter()
        """Number of requests by file name."""
        self.ranges: list[str] = []
        """The Range headers, in order."""
        self.faults: dict[str, list[Fault]] = {}
        """By file name: faults of the first request, the second, and so on."""
        self.lasting: dict[str, Fault] = {}
        """By file name: the fault of every further request."""
        self.every: Fault | None = None
        """The fault for each request that has no fault of its own."""
        self.passwords: set[str] = set()
        """User and password of the requests that had them."""
        self.takes_ranges = True
        self.released = threading.Event()
        """Set at the end, to release requests that hang."""

    def fault(self, name: str, *faults: Fault) -> None:
        """The first requests for a file fail with these faults, in order."""
        self.faults[name] = list(faults)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves files of a folder, completely or from an offset."""

    folder: Path
    served: Served
    lock = threading.Lock()

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        with self.lock:
            self.served.requests[name] += 1
            if given := self.headers["Authorization"]:
                self.served.passwords.add(base64.b64decode(given.removeprefix("Basic ")).decode())
            waiting = self.served.faults.get(name)
            fault = waiting.pop(0) if waiting else self.served.lasting.get(name, self.served.every)
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.tag = f'"{zlib.crc32(content)}"'
        if fault is None or not fault(self, content):
            self.answer(content)

    def answer(self, content: bytes, half: bool = False, flip: bool = False) -> None:
        """The right answer; `half`: not all of what was announced; `flip`: one bit is wrong."""
        start, status = 0, 200
        if (asked := self.headers["Range"]) is not None:
            self.served.ranges.append(asked)
            if self.served.takes_ranges:
                start, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206  # type: ignore[index]
                if start >= len(content):
                    self.send_error(416)
                    return
        body = bytearray(content[start:])
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if flip:
            body[len(body) // 2] ^= 1
        self.wfile.write(body[: len(body) // 2] if half else body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, of: type[Handler] = Handler) -> Iterator[Served]:
    """Serve the folder at a local URL."""
    os.environ.setdefault("no_proxy", "127.0.0.1")
    handler = type("OfFolder", (of,), {"folder": folder})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.served = served = Served(server.server_address[1])  # type: ignore[attr-defined]
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that went away
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            served.released.set()
            server.shutdown()
            thread.join()


def hangs(handler: Handler, content: bytes) -> bool:
    handler.served.released.wait(10)
    handler.close_connection = True
    return True


def hangs_in_the_middle(handler: Handler, content: bytes) -> bool:
    handler.answer(content, half=True)
    return hangs(handler, content)


def status(code: int) -> Fault:
    def answer(handler: Handler, content: bytes) -> bool:
        handler.send_error(code)
        return True

    return answer


def closes(handler: Handler, content: bytes) -> bool:
    handler.close_connection = True
    return True


def cut(handler: Handler, content: bytes) -> bool:
    """Announces everything and sends half."""
    handler.answer(content, half=True)
    handler.close_connection = True
    return True


def short(handler: Handler, content: bytes) -> bool:
    """Announces half and sends it."""
    handler.answer(content[: len(content) // 2])
    return True


def flipped(handler: Handler, content: bytes) -> bool:
    handler.answer(content, flip=True)
    return True

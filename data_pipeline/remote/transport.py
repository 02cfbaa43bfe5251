"""One attempt to read a remote file: over HTTP, through fsspec, or from a command's output."""

import base64
import http.client
import re
import select
import shlex
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from typing import Protocol

from data_pipeline.remote.errors import PermanentError, TransientError, of_status
from data_pipeline.remote.fsspec_store import FsspecStream
from data_pipeline.storage.urls import PIPE, is_http

BLOCK_BYTES = 1 << 20


class Stream(Protocol):
    """The bytes of a file in order, once."""

    start: int
    """Offset of the first byte. It is 0 instead of the requested offset if the source serves only whole files."""
    size: int | None
    """Size of the whole file, if known."""
    version: str | None
    """Changes with the content; None if unknown."""

    def read(self) -> bytes:
        """The next bytes; b"" at the end. A client may also report a broken connection as the end."""

    def version_now(self) -> str | None:
        """The version after a `read`. If it differs from before, that read may have mixed two versions of the file."""

    def close(self) -> None: ...


def connect(url: str, start: int, timeout: float) -> Stream:
    """Open the file at byte `start`. Raises TransientError or PermanentError."""
    if url.startswith(PIPE):
        return _PipeStream(url, timeout)
    return _HttpStream(url, start, timeout) if is_http(url) else FsspecStream(url, start, timeout)


class _HttpStream:
    """Uses the standard library's client, which exposes status and length and needs no event loop."""

    def __init__(self, url: str, start: int, timeout: float) -> None:
        try:
            self._answer = urllib.request.urlopen(_request(url, start), timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise _of_status(error.code, start) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _of_connection(error) from None
        head = self._answer.headers
        self.version = head["ETag"] or head["Last-Modified"]
        self.start, self.size = 0, _number(head["Content-Length"])
        if start and self._answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", head["Content-Range"] or "")
            if found is None or int(found[1]) != start:
                self.close()
                raise TransientError(f"answered with another range than from byte {start:,} on")
            self.start, self.size = start, _number(found[2])
        elif self._answer.status != 200:
            self.close()
            raise PermanentError(f"HTTP status {self._answer.status}")

    def read(self) -> bytes:
        try:
            block: bytes = self._answer.read(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _of_connection(error) from None
        return block

    def version_now(self) -> str | None:
        return self.version  # one response has one version

    def close(self) -> None:
        self._answer.close()


def _request(url: str, start: int) -> urllib.request.Request:
    """A request for the bytes from `start` on. User and password in the URL are sent only to its own host (basic
    auth)."""
    parts = urllib.parse.urlsplit(url)
    user, mark, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))
    if start:
        request.add_header("Range", f"bytes={start}-")
    if mark:
        known = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {known}")
    return request


def _of_status(code: int, start: int) -> Exception:
    if code == 416:
        return TransientError(f"has no byte {start:,}")
    return of_status(code, f"HTTP status {code} ({http.client.responses.get(code, 'unknown')})")


def _of_connection(error: Exception) -> Exception:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return TransientError("no answer in time")
    what = str(cause) or type(cause).__name__
    final = (ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError)
    return PermanentError(what) if isinstance(cause, final) else TransientError(what)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


class _PipeStream:
    """Reads the output of a command. It runs without a shell, so that names cannot inject commands."""

    def __init__(self, url: str, timeout: float) -> None:
        self.start = 0
        self.size: int | None = None
        self.version: str | None = None
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the stream
        try:
            arguments = shlex.split(url.removeprefix(PIPE))
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
            )
        except (OSError, ValueError, IndexError) as error:
            self._errors.close()
            raise PermanentError(f"the command cannot be started ({error})") from None

    def read(self) -> bytes:
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], self._timeout)[0]:
            raise TransientError("the command printed nothing in time")
        block: bytes = output.read(BLOCK_BYTES)
        if not block and (code := self._wait()) != 0:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            raise TransientError(f"the command ended with exit code {code}" + (f" ({words[-1]})" if words else ""))
        return block

    def version_now(self) -> str | None:
        return self.version

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _wait(self) -> int:
        try:
            return self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise TransientError("the command did not end in time") from None

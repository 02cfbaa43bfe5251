"""File systems of fsspec behind words of our own: every question is answered in time, every error is one of two."""

import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, Protocol

from data_pipeline.remote.call_timeout import CallTimeout, Result, take_thread
from data_pipeline.remote.errors import PermanentError, TransientError, of_status

FIRST_REQUEST_BYTES = 1 << 20
"""A request must come in whole within the time allowed, so that a way that is slow needs small ones."""
REQUEST_BYTES = 8 << 20
"""File systems ask for range after range: at most so much, where the way is quick."""
MAX_BLOCKS, BLOCK_UNIT = 5000, 1 << 20
"""Of a file that is written: S3 takes 10,000 parts, Google's blocks are multiples of 256 KiB."""
LISTING_TIMEOUT_FACTOR = 10
"""Times of the time allowed: one call lists many files, 1000 in each of the server's answers, or joins many blocks."""
_VERSIONS = "generation", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created"
STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class Readable(Protocol):
    """What is written somewhere."""

    def read(self, size: int, /) -> bytes: ...


class RemotePath:
    """What a URL names: a file system and a path in it."""

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._system: Any = None
        _import(url)
        try:
            self._thread = take_thread(timeout)
        except CallTimeout:
            raise TransientError("no answer in time") from None
        try:
            self._system, self.path = self._call(lambda: _open(url))
        except BaseException:
            self._thread.release()
            raise

    def details(self) -> dict[str, Any]:
        """As they are now, not as a listing told before."""

        def ask() -> dict[str, Any]:
            self._system.invalidate_cache(self.path)
            found: dict[str, Any] = self._system.info(self.path)
            return found

        return self._call(ask)

    def find(self) -> dict[str, dict[str, Any]]:
        """Every file in the folder and in those below, by its path."""
        found: dict[str, dict[str, Any]] = self._call(
            lambda: self._system.find(self.path, detail=True), LISTING_TIMEOUT_FACTOR
        )
        return found

    def glob(self) -> dict[str, dict[str, Any]]:
        """The files that fit the path, by theirs."""
        found = self._call(lambda: self._system.glob(self.path, detail=True), LISTING_TIMEOUT_FACTOR)
        return {path: details for path, details in found.items() if details["type"] == "file"}

    def url_of(self, path: str) -> str:
        url: str = self._system.unstrip_protocol(path)
        return url

    def open(self) -> Any:
        return self._call(lambda: self._system.open(self.path, "rb", block_size=REQUEST_BYTES, cache_type="none"))

    def read(self, file: Any, start: int, size: int) -> bytes:
        def ask() -> bytes:
            file.seek(start)
            block: bytes = file.read(size)
            return block

        return self._call(ask)

    def list(self) -> dict[str, int | None]:
        """Name and size of what lies in the folder itself, as it is now; {}: there is no folder."""

        def ask() -> dict[str, int | None]:
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self.path, detail=True)
            except FileNotFoundError:
                return {}
            return {PurePosixPath(details["name"]).name: details.get("size") for details in found}

        return self._call(ask)

    def write(self, source: Readable, num_bytes: int) -> None:
        """A file of so many bytes, block by block, each within the time allowed; it is there when all of it is."""
        size = max(REQUEST_BYTES, -(-num_bytes // MAX_BLOCKS // BLOCK_UNIT) * BLOCK_UNIT)
        # What opens a file here empties it, if need be long after nobody waits for the answer any more. A store puts a
        # file there when it is closed; one that is collected is closed too, and is marked as if it were until then.
        path = self.path if _is_store(self._system) else f"{self.path}.{secrets.token_hex(8)}.partial"

        def begin() -> Any:
            opened = self._system.open(path, "wb", block_size=size)
            _mark(opened, closed=True)
            return opened

        try:
            file = self._call(begin)
        except PermanentError:
            if _is_store(self._system):  # it would make buckets
                raise
            self._call(lambda: self._system.makedirs(self._system._parent(path), exist_ok=True))
            file = self._call(begin)
        _mark(file, closed=False)
        try:
            while block := source.read(size):
                self._call(functools.partial(file.write, block))
            self._call(file.close, 1 if num_bytes <= size else LISTING_TIMEOUT_FACTOR)  # a store puts blocks together
            if path != self.path:
                self._call(lambda: self._system.mv(path, self.path))
        except BaseException:
            _mark(file, closed=True)
            with contextlib.suppress(TransientError, PermanentError):  # blocks that lie there cost money
                self._call(file.discard if path == self.path else lambda: self._system.rm_file(path))
            raise

    def remove(self) -> None:
        """The file, or the folder with all that is in it, if it is there."""

        def remove(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(path)

        def end() -> None:
            with contextlib.suppress(Exception):  # there is none, or never was: stores have only names
                self._system.rmdir(self.path)

        self._call(lambda: self._system.invalidate_cache())
        # One by one: `rm` takes names for patterns, and of many at once S3's does not tell which it refused.
        for path in self._call(lambda: self._system.find(self.path)):
            self._call(functools.partial(remove, path))
        self._call(end)

    def close(self, file: Any = None) -> None:
        if file is not None:
            with contextlib.suppress(TransientError, PermanentError):
                self._call(file.close)
        self._thread.release()

    def _call(self, call: Callable[[], Result], timeout_factor: int = 1) -> Result:
        try:
            return self._thread.call(call, self._timeout * timeout_factor)
        except CallTimeout:
            if self._system is not None:  # the next try has connections of its own, none that such calls still hold
                type(self._system).clear_instance_cache()
            raise TransientError("no answer in time") from None
        except Exception as error:
            raise _translate(error) from None


class FsspecStream:
    """The bytes of a file from `start` on."""

    def __init__(self, url: str, start: int, timeout: float) -> None:
        self.start = self._position = start
        self._timeout, self._request = timeout, FIRST_REQUEST_BYTES
        self._file: Any = None
        self._remote_path = RemotePath(url, timeout)
        try:
            details = self._remote_path.details()
            if details.get("type") == "directory":
                raise PermanentError("is a folder")
            self.size, self.version = details.get("size"), version_of(details)
            self._file = self._remote_path.open()
        except BaseException:
            self.close()
            raise

    def read(self) -> bytes:
        began = time.monotonic()
        block = self._remote_path.read(self._file, self._position, self._request)
        self._position += len(block)
        took = time.monotonic() - began
        if took < self._timeout / 16:
            self._request = min(2 * self._request, REQUEST_BYTES)
        elif took > self._timeout / 4:
            self._request = max(self._request // 2, FIRST_REQUEST_BYTES)
        return block

    def version_now(self) -> str | None:
        return version_of(self._remote_path.details())

    def close(self) -> None:
        self._remote_path.close(self._file)


def _is_store(system: Any) -> bool:
    """Whether it has objects, which are there whole or not at all, and no files."""
    schemes = [system.protocol] if isinstance(system.protocol, str) else system.protocol
    return bool(STORES.intersection(schemes))


def _mark(file: Any, closed: bool) -> None:
    """Where that is kept in the file itself, as with all that fsspec makes of blocks."""
    with contextlib.suppress(AttributeError):
        file.closed = closed


def version_of(details: dict[str, Any]) -> str | None:
    """What changes with a file's content, under the name that its file system has for it."""
    for key in _VERSIONS:
        if details.get(key) is not None:
            return str(details[key])
    return None


def _import(url: str) -> None:
    """What the URL needs; not within a time, since a thread that is left in an import keeps others from theirs."""
    import fsspec.utils

    scheme = fsspec.utils.get_protocol(url)
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        remedy = f"pip install 'pretrain[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "install it"
        raise PermanentError(f"{scheme}:// needs a package that is not installed ({error}): {remedy}") from None
    except ValueError as error:
        raise PermanentError(str(error)) from None
    # It logs the stack of every error that it raises besides, also of those that are told here in one line.
    logging.getLogger("gcsfs").addFilter(_has_no_stack)


def _has_no_stack(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _open(url: str) -> tuple[Any, str]:
    import fsspec.core

    system, path = fsspec.core.url_to_fs(url)
    return system, path


def _translate(error: Exception) -> Exception:
    """Interrupted or Refused; file systems' own types are as many as there are of them."""
    if isinstance(error, FileNotFoundError):
        return PermanentError("no such file")
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return PermanentError(text or type(error).__name__)
    if isinstance(error, TimeoutError):
        return TransientError("no answer in time")
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    # Subclasses of ValueError are also answers that are no JSON, as broken ones are.
    if type(error) is ValueError or "CredentialsError" in type(error).__name__ or text.startswith("Forbidden"):
        return PermanentError(what)
    status = _http_status(error)
    return of_status(status, what) if status is not None else TransientError(what)


def _http_status(error: BaseException) -> int | None:
    """Of the HTTP answer that is behind an error, by the names that clients have for it."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        places = [(place, name) for place in (error, answer) for name in ("status", "status_code", "code")]
        found = next((value for place, name in places if isinstance(value := getattr(place, name, None), int)), None)
    if found is None and error.__cause__ is not None:
        return _http_status(error.__cause__)
    return found

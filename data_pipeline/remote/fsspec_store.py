"""The adapter for fsspec file systems: every call has a timeout, and every error is transient or permanent."""

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
"""Requests start small: each must complete within the timeout, also over a slow connection."""
REQUEST_BYTES = 8 << 20
"""Largest request over a fast connection."""
MAX_BLOCKS, BLOCK_UNIT = 5000, 1 << 20
"""Limits for uploads: S3 allows 10,000 parts, and Google's blocks must be multiples of 256 KiB."""
LISTING_TIMEOUT_FACTOR = 10
"""Multiplies the timeout for calls that list many files (1000 per server response) or join many blocks."""
_VERSIONS = "generation", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created"
STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class Readable(Protocol):
    """A source of bytes to upload."""

    def read(self, size: int, /) -> bytes: ...


class RemotePath:
    """A file system and a path in it, as named by a URL."""

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
        """Current details of the path, bypassing the listing cache."""

        def ask() -> dict[str, Any]:
            self._system.invalidate_cache(self.path)
            found: dict[str, Any] = self._system.info(self.path)
            return found

        return self._call(ask)

    def find(self) -> dict[str, dict[str, Any]]:
        """All files below this folder, by path."""
        found: dict[str, dict[str, Any]] = self._call(
            lambda: self._system.find(self.path, detail=True), LISTING_TIMEOUT_FACTOR
        )
        return found

    def glob(self) -> dict[str, dict[str, Any]]:
        """The files that match the pattern, by path."""
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
        """Names and sizes of the folder's direct entries, uncached. Empty if there is no such folder."""

        def ask() -> dict[str, int | None]:
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self.path, detail=True)
            except FileNotFoundError:
                return {}
            return {PurePosixPath(details["name"]).name: details.get("size") for details in found}

        return self._call(ask)

    def write(self, source: Readable, num_bytes: int) -> None:
        """Write a file of `num_bytes` in blocks, each within the timeout. It appears only when it is complete."""
        size = max(REQUEST_BYTES, -(-num_bytes // MAX_BLOCKS // BLOCK_UNIT) * BLOCK_UNIT)
        # On a file system, opening a file truncates it, possibly long after we stopped waiting for the call: so write
        # under a temporary name. An object store creates the object on close. A file object that is garbage-collected
        # is closed too, so mark it as closed until we mean it.
        path = self.path if _is_store(self._system) else f"{self.path}.{secrets.token_hex(8)}.partial"

        def begin() -> Any:
            opened = self._system.open(path, "wb", block_size=size)
            _mark(opened, closed=True)
            return opened

        try:
            file = self._call(begin)
        except PermanentError:
            if _is_store(self._system):  # it would create buckets
                raise
            self._call(lambda: self._system.makedirs(self._system._parent(path), exist_ok=True))
            file = self._call(begin)
        _mark(file, closed=False)
        try:
            while block := source.read(size):
                self._call(functools.partial(file.write, block))
            self._call(file.close, 1 if num_bytes <= size else LISTING_TIMEOUT_FACTOR)  # a store joins the blocks
            if path != self.path:
                self._call(lambda: self._system.mv(path, self.path))
        except BaseException:
            _mark(file, closed=True)
            with contextlib.suppress(TransientError, PermanentError):  # incomplete uploads cost money
                self._call(file.discard if path == self.path else lambda: self._system.rm_file(path))
            raise

    def remove(self) -> None:
        """Remove the file, or the folder with its content, if it exists."""

        def remove(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(path)

        def end() -> None:
            with contextlib.suppress(Exception):  # it may not exist: object stores have no real folders
                self._system.rmdir(self.path)

        self._call(lambda: self._system.invalidate_cache())
        # One by one: `rm` treats names as patterns, and S3's bulk delete does not say which file it refused.
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
            if self._system is not None:  # the next attempt must not reuse connections that stuck calls may hold
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
    """Whether this is an object store, where a file appears complete or not at all."""
    schemes = [system.protocol] if isinstance(system.protocol, str) else system.protocol
    return bool(STORES.intersection(schemes))


def _mark(file: Any, closed: bool) -> None:
    """Set `closed` on file objects that keep it as an attribute, as fsspec's buffered files do."""
    with contextlib.suppress(AttributeError):
        file.closed = closed


def version_of(details: dict[str, Any]) -> str | None:
    """A value that changes with the file's content. Each file system has its own name for it."""
    for key in _VERSIONS:
        if details.get(key) is not None:
            return str(details[key])
    return None


def _import(url: str) -> None:
    """Import what the URL needs. This has no timeout, because a thread stuck in an import would block other imports."""
    import fsspec.utils

    scheme = fsspec.utils.get_protocol(url)
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        remedy = f"pip install 'pretrain[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "install it"
        raise PermanentError(f"{scheme}:// needs a package that is not installed ({error}): {remedy}") from None
    except ValueError as error:
        raise PermanentError(str(error)) from None
    # gcsfs also logs a stack trace for every error that it raises. We report those errors in one line.
    logging.getLogger("gcsfs").addFilter(_has_no_stack)


def _has_no_stack(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _open(url: str) -> tuple[Any, str]:
    import fsspec.core

    system, path = fsspec.core.url_to_fs(url)
    return system, path


def _translate(error: Exception) -> Exception:
    """Convert an exception of a file system to TransientError or PermanentError."""
    if isinstance(error, FileNotFoundError):
        return PermanentError("no such file")
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return PermanentError(text or type(error).__name__)
    if isinstance(error, TimeoutError):
        return TransientError("no answer in time")
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    # Subclasses of ValueError include JSON decoding errors, as after a broken response, and are transient.
    if type(error) is ValueError or "CredentialsError" in type(error).__name__ or text.startswith("Forbidden"):
        return PermanentError(what)
    status = _http_status(error)
    return of_status(status, what) if status is not None else TransientError(what)


def _http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, under the attribute names that clients use."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        places = [(place, name) for place in (error, answer) for name in ("status", "status_code", "code")]
        found = next((value for place, name in places if isinstance(value := getattr(place, name, None), int)), None)
    if found is None and error.__cause__ is not None:
        return _http_status(error.__cause__)
    return found

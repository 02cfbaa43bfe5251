"""File systems of fsspec behind words of our own: every question is answered in time, every error is one of two."""

import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, Protocol

from data_pipeline.remote.call_timeout import Answer, NoAnswer, take_caller
from data_pipeline.remote.errors import Interrupted, Refused, of_status

FIRST_REQUEST_BYTES = 1 << 20
"""A request must come in whole within the time allowed, so that a way that is slow needs small ones."""
REQUEST_BYTES = 8 << 20
"""File systems ask for range after range: at most so much, where the way is quick."""
MOST_BLOCKS, BLOCK_UNIT = 5000, 1 << 20
"""Of a file that is written: S3 takes 10,000 parts, Google's blocks are multiples of 256 KiB."""
LISTING_PATIENCE = 10
"""Times of the time allowed: one call lists many files, 1000 in each of the server's answers, or joins many blocks."""
_VERSIONS = "generation", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created"
STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class Source(Protocol):
    """What is written somewhere."""

    def read(self, size: int, /) -> bytes: ...


class Place:
    """What a URL names: a file system and a path in it."""

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._system: Any = None
        _import(url)
        try:
            self._caller = take_caller(timeout)
        except NoAnswer:
            raise Interrupted("no answer in time") from None
        try:
            self._system, self.path = self._ask(lambda: _open(url))
        except BaseException:
            self._caller.release()
            raise

    def details(self) -> dict[str, Any]:
        """As they are now, not as a listing told before."""

        def ask() -> dict[str, Any]:
            self._system.invalidate_cache(self.path)
            found: dict[str, Any] = self._system.info(self.path)
            return found

        return self._ask(ask)

    def find(self) -> dict[str, dict[str, Any]]:
        """Every file in the folder and in those below, by its path."""
        found: dict[str, dict[str, Any]] = self._ask(
            lambda: self._system.find(self.path, detail=True), LISTING_PATIENCE
        )
        return found

    def glob(self) -> dict[str, dict[str, Any]]:
        """The files that fit the path, by theirs."""
        found = self._ask(lambda: self._system.glob(self.path, detail=True), LISTING_PATIENCE)
        return {path: details for path, details in found.items() if details["type"] == "file"}

    def url_of(self, path: str) -> str:
        url: str = self._system.unstrip_protocol(path)
        return url

    def open(self) -> Any:
        return self._ask(lambda: self._system.open(self.path, "rb", block_size=REQUEST_BYTES, cache_type="none"))

    def read(self, file: Any, start: int, size: int) -> bytes:
        def ask() -> bytes:
            file.seek(start)
            block: bytes = file.read(size)
            return block

        return self._ask(ask)

    def list(self) -> dict[str, int | None]:
        """Name and size of what lies in the folder itself, as it is now; {}: there is no folder."""

        def ask() -> dict[str, int | None]:
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self.path, detail=True)
            except FileNotFoundError:
                return {}
            return {PurePosixPath(details["name"]).name: details.get("size") for details in found}

        return self._ask(ask)

    def write(self, source: Source, num_bytes: int) -> None:
        """A file of so many bytes, block by block, each within the time allowed; it is there when all of it is."""
        size = max(REQUEST_BYTES, -(-num_bytes // MOST_BLOCKS // BLOCK_UNIT) * BLOCK_UNIT)
        # What opens a file here empties it, if need be long after nobody waits for the answer any more. A store puts a
        # file there when it is closed; one that is collected is closed too, and is marked as if it were until then.
        path = self.path if _is_store(self._system) else f"{self.path}.{secrets.token_hex(8)}.partial"

        def begin() -> Any:
            opened = self._system.open(path, "wb", block_size=size)
            _mark(opened, closed=True)
            return opened

        try:
            file = self._ask(begin)
        except Refused:
            if _is_store(self._system):  # it would make buckets
                raise
            self._ask(lambda: self._system.makedirs(self._system._parent(path), exist_ok=True))
            file = self._ask(begin)
        _mark(file, closed=False)
        try:
            while block := source.read(size):
                self._ask(functools.partial(file.write, block))
            self._ask(file.close, 1 if num_bytes <= size else LISTING_PATIENCE)  # a store puts blocks together
            if path != self.path:
                self._ask(lambda: self._system.mv(path, self.path))
        except BaseException:
            _mark(file, closed=True)
            with contextlib.suppress(Interrupted, Refused):  # blocks that lie there cost money
                self._ask(file.discard if path == self.path else lambda: self._system.rm_file(path))
            raise

    def remove(self) -> None:
        """The file, or the folder with all that is in it, if it is there."""

        def remove(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(path)

        def end() -> None:
            with contextlib.suppress(Exception):  # there is none, or never was: stores have only names
                self._system.rmdir(self.path)

        self._ask(lambda: self._system.invalidate_cache())
        # One by one: `rm` takes names for patterns, and of many at once S3's does not tell which it refused.
        for path in self._ask(lambda: self._system.find(self.path)):
            self._ask(functools.partial(remove, path))
        self._ask(end)

    def close(self, file: Any = None) -> None:
        if file is not None:
            with contextlib.suppress(Interrupted, Refused):
                self._ask(file.close)
        self._caller.release()

    def _ask(self, call: Callable[[], Answer], patience: int = 1) -> Answer:
        try:
            return self._caller.call(call, self._timeout * patience)
        except NoAnswer:
            if self._system is not None:  # the next try has connections of its own, none that such calls still hold
                type(self._system).clear_instance_cache()
            raise Interrupted("no answer in time") from None
        except Exception as error:
            raise _of_vendor(error) from None


class FsspecStream:
    """The bytes of a file from `start` on."""

    def __init__(self, url: str, start: int, timeout: float) -> None:
        self.start = self._position = start
        self._timeout, self._request = timeout, FIRST_REQUEST_BYTES
        self._file: Any = None
        self._place = Place(url, timeout)
        try:
            details = self._place.details()
            if details.get("type") == "directory":
                raise Refused("is a folder")
            self.size, self.version = details.get("size"), version_of(details)
            self._file = self._place.open()
        except BaseException:
            self.close()
            raise

    def read(self) -> bytes:
        began = time.monotonic()
        block = self._place.read(self._file, self._position, self._request)
        self._position += len(block)
        took = time.monotonic() - began
        if took < self._timeout / 16:
            self._request = min(2 * self._request, REQUEST_BYTES)
        elif took > self._timeout / 4:
            self._request = max(self._request // 2, FIRST_REQUEST_BYTES)
        return block

    def version_now(self) -> str | None:
        return version_of(self._place.details())

    def close(self) -> None:
        self._place.close(self._file)


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
        raise Refused(f"{scheme}:// needs a package that is not installed ({error}): {remedy}") from None
    except ValueError as error:
        raise Refused(str(error)) from None
    # It logs the stack of every error that it raises besides, also of those that are told here in one line.
    logging.getLogger("gcsfs").addFilter(_has_no_stack)


def _has_no_stack(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _open(url: str) -> tuple[Any, str]:
    import fsspec.core

    system, path = fsspec.core.url_to_fs(url)
    return system, path


def _of_vendor(error: Exception) -> Exception:
    """Interrupted or Refused; file systems' own types are as many as there are of them."""
    if isinstance(error, FileNotFoundError):
        return Refused("no such file")
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return Refused(text or type(error).__name__)
    if isinstance(error, TimeoutError):
        return Interrupted("no answer in time")
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    # Subclasses of ValueError are also answers that are no JSON, as broken ones are.
    if type(error) is ValueError or "CredentialsError" in type(error).__name__ or text.startswith("Forbidden"):
        return Refused(what)
    status = _status(error)
    return of_status(status, what) if status is not None else Interrupted(what)


def _status(error: BaseException) -> int | None:
    """Of the HTTP answer that is behind an error, by the names that clients have for it."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        places = [(place, name) for place in (error, answer) for name in ("status", "status_code", "code")]
        found = next((value for place, name in places if isinstance(value := getattr(place, name, None), int)), None)
    if found is None and error.__cause__ is not None:
        return _status(error.__cause__)
    return found

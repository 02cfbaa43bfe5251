"""Buckets on local servers that speak S3 and Google Cloud Storage, behind a relay that can inject faults."""

import http.client
import json
import os
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fsspec
import pytest

from tests.support.http_server import Handler, Served, serving

SCHEMES = "s3", "gs"
# Read when gcsfs is imported. Emulators do not speak gRPC, which it would use to ask for each bucket's kind.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
WRITES = "writes"
_OF_ONE_CONNECTION = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(frozen=True)
class Bucket:
    """A new empty bucket for each test, and the relay in front of it."""

    scheme: str
    name: str
    served: Served

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.name}"

    @cached_property
    def files(self) -> fsspec.AbstractFileSystem:
        """Another instance of the file system, independent of the code under test."""
        return fsspec.filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False)

    def put(self, name: str, content: bytes) -> str:
        """Store an object and return its URL."""
        self.files.pipe_file(f"{self.name}/{name}", content)
        return f"{self.url}/{name}"

    def put_folder(self, folder: Path) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(path.relative_to(folder.parent).as_posix(), path.read_bytes())
        return f"{self.url}/{folder.name}"

    def forbid(self) -> None:
        """Deny all reads of its objects from now on."""
        if self.scheme == "s3":
            anything = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{self.name}/*"}
            self.files.call_s3("put_bucket_policy", Bucket=self.name, Policy=json.dumps({"Statement": [anything]}))
        else:  # the emulator has no access rights
            self.served.every = forbidden


@contextmanager
def s3_server() -> Iterator[int]:
    """The server's port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@contextmanager
def gs_server() -> Iterator[int]:
    """The server's port."""
    from gcp_storage_emulator.server import create_server

    with create_server("127.0.0.1", 0, in_memory=True) as server:
        yield server._api._httpd.server_address[1]


def set_environment(patch: pytest.MonkeyPatch, scheme: str, endpoint: str) -> None:
    """Set what a user would set for such a server; this machine's own settings are not read."""
    settings: dict[str, dict[str, str | None]] = {
        "s3": {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_PROFILE": None,
            "AWS_SESSION_TOKEN": None,
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        "gs": {
            "STORAGE_EMULATOR_HOST": endpoint,
            "GOOGLE_APPLICATION_CREDENTIALS": None,
            "CLOUDSDK_CONFIG": "/nowhere",
            "NO_GCE_CHECK": "true",
        },
    }
    for name, value in settings[scheme].items():
        if value is None:
            patch.delenv(name, raising=False)
        else:
            patch.setenv(name, value)
    # An existing instance keeps the settings that it was made with.
    fsspec.get_filesystem_class(scheme).clear_instance_cache()


@contextmanager
def bucket_at(scheme: str, port: int, patch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A new bucket on the server at this port."""
    with serving(Path(), of=type("ToStore", (Relay,), {"port": port})) as served:
        set_environment(patch, scheme, served.url)
        bucket = Bucket(scheme, f"bucket-{uuid.uuid4().hex}", served)
        bucket.files.mkdir(bucket.name)
        yield bucket
        fsspec.get_filesystem_class(scheme).clear_instance_cache()


class Relay(Handler):
    """Forwards requests and their responses, unless a fault is due.

    Faults are selected by the last part of an object's name for requests of its bytes, by `about NAME` for other
    requests about it, and by WRITES for those that change anything.
    """

    port: int
    protocol_version = "HTTP/1.1"  # else a client waits in vain for `100 Continue`

    def handle_one(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        reads = self.command in ("GET", "HEAD")
        name = urllib.parse.unquote(parts.path).rpartition("/")[2]
        if not (self.headers["Range"] or "alt=media" in parts.query):
            name = f"about {name}"
        name = name if reads else WRITES
        with self.lock:
            self.served.requests[name] += 1
            waiting = self.served.faults.get(name)
            fault = waiting.pop(0) if waiting else self.served.lasting.get(name, self.served.every if reads else None)
        upstream = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            upstream.request(self.command, self.path, body, headers)
            self.reply = upstream.getresponse()
            content = self.reply.read()
        finally:
            upstream.close()
        if fault is None or not fault(self, content):
            self.answer(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def answer(self, content: bytes, half: bool = False, flip: bool = False) -> None:
        """The reply that came, with this content; `half`: not all of what was announced; `flip`: one bit is wrong."""
        if self.headers["Range"]:
            self.served.ranges.append(self.headers["Range"])
        length = self.reply.headers["Content-Length"] if self.command == "HEAD" else str(len(content))
        self.send_response(self.reply.status)
        for name, value in self.reply.getheaders():
            if name.lower() not in _OF_ONE_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        body = bytearray(content)
        if flip:
            body[len(body) // 2] ^= 1
        self.wfile.write(body[: len(body) // 2] if half else body)


def forbidden(handler: Relay, content: bytes) -> bool:
    """Refuses like Google's server."""
    message = "somebody does not have storage.objects.get access to the object, or it does not exist."
    body = json.dumps({"error": {"code": 403, "message": message}}).encode()
    handler.send_response(403)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True

"""Object stores, whose servers are started when a test asks for a bucket, and a server that never answers."""

import socket
from collections.abc import Iterator

import pytest

from tests.support.object_stores import SCHEMES, Bucket, bucket_at, gs_server, s3_server


@pytest.fixture(scope="session")
def ports() -> Iterator[dict[str, int]]:
    with s3_server() as s3, gs_server() as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture(params=SCHEMES)
def bucket(request: pytest.FixtureRequest, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty one, of its own for each test."""
    with bucket_at(request.param, ports[request.param], monkeypatch) as made:
        yield made


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"

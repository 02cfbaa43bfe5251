"""Object stores: their servers are started where a test asks for a bucket."""

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

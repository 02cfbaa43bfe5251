"""A folder with two datasets, a server for it, and an empty cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.config import CacheConfig
from tests.support.corpus import cache_config
from tests.support.http_server import Served, serving
from tests.unit.data_pipeline.shards.test_shards import DOCUMENTS, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("remote")
    write(place / "set")
    write(place / "other", DOCUMENTS[::-1])
    return place


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return cache_config(tmp_path / "cache")

"""One cluster for all tests of Slurm."""

from collections.abc import Iterator

import pytest

from tests.support.slurm import running_cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    with running_cluster():
        yield

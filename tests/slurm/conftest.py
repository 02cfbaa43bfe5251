"""One cluster for all tests of Slurm."""

from collections.abc import Iterator

import pytest

from tests.support.runs import Workplace, prepare_dataset
from tests.support.slurm import is_throw_away, running_cluster
from tests.support.slurm_jobs import Jobs


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    with running_cluster():
        yield


@pytest.fixture(scope="session")
def jobs(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Jobs that may be hurt, with all that is around them."""
    if not is_throw_away():
        pytest.skip("nodes are hurt here: this needs a throw-away cluster")
    folder = tmp_path_factory.mktemp("slurm")
    jobs = Jobs(Workplace(folder / "jobs", prepare_dataset(folder)))
    yield jobs
    jobs.cancel()

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import Workplace, prepare_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared once; not to be changed."""
    return prepare_dataset(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def place(tmp_path: Path, dataset: Path) -> Workplace:
    """An empty folder to run commands in."""
    return Workplace(tmp_path / "place", dataset)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Workplace:
    """A folder with runs that several tests look at and none changes."""
    return Workplace(tmp_path_factory.mktemp("shared"), dataset)


@pytest.fixture(scope="session")
def finished_run(shared: Workplace) -> Path:
    """A run with dropout, trained without a break: 16 steps."""
    done = shared.train("finished", "model.hidden_dropout=0.1")
    assert done.returncode == 0, done.stderr
    return shared.run_dir("finished")


@pytest.fixture(scope="session")
def plain_run(shared: Workplace) -> Path:
    """A Llama-style run without dropout, whose losses do not depend on the number of processes."""
    done = shared.train("plain", "model=tiny_llama", "model.num_query_groups=1")
    assert done.returncode == 0, done.stderr
    return shared.run_dir("plain")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 200 KiB large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)

"""A folder from which runs are started or submitted."""

from pathlib import Path

import pytest

from tests.support.corpus import make_texts, prepare_synthetic, write_jsonl


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare_synthetic(folder / "set", [write_jsonl(folder / "corpus.jsonl", make_texts(20))], seq_length=256)
    return folder / "set"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Path) -> Path:
    """An empty folder, now the working directory, where data/files is prepared."""
    folder = tmp_path / "place"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "files").symlink_to(dataset)
    monkeypatch.chdir(folder)
    return folder

"""The text of a small dataset, and the dataset prepared from it."""

import pytest

from tests.support.corpus import (
    prepare_synthetic,
    write_jsonl,
)
from tests.unit.data_pipeline.prepare.prepared_folder import TEXTS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("source") / "texts.jsonl", [*TEXTS, *TEXTS[:20], ""])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("data") / "set"
    prepare_synthetic(folder, [source])
    return folder

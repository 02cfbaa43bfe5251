"""All of cleaning together: dropping, changing, masks, copies, benchmarks. Tasks and workers do not affect the
result."""

import pytest

from data_pipeline.cleaning.pii import Pii
from data_pipeline.errors import DataError
from data_pipeline.prepare import scan
from data_pipeline.shards.manifest import Manifest
from tests.support.corpus import prepare_synthetic
from tests.support.dirty import CHANGED, DROPPED, dirty_settings, write_dirty


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_dirty(folder)


@pytest.fixture(scope="module")
def whole(corpus, request):
    """The dataset made by one process with tasks of the usual size."""
    folder, inputs = corpus
    prepare_synthetic(folder / request.param, inputs, **dirty_settings(folder, request.param))
    return request.param, folder / request.param


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


both_kinds = pytest.mark.parametrize("whole", ["exact", "near"], indirect=True)


@both_kinds
def test_every_dropped_or_changed_document_is_counted(whole):
    dedup, folder = whole
    record = Manifest.load(folder).corpus
    expected = {reason: number for reason, number in DROPPED.items() if reason != "dedup/near" or dedup == "near"}
    assert (record.dropped, record.changed) == (expected, CHANGED)


@both_kinds
@pytest.mark.parametrize(("task_bytes", "num_workers"), [(1_500, 3), (7_000, 1), (40_000, 2), (10**9, 2)])
def test_task_size_and_workers_do_not_change_cleaned_text(
    tmp_path, corpus, whole, monkeypatch, task_bytes, num_workers
):
    (folder, inputs), (dedup, expected) = corpus, whole
    monkeypatch.setattr(scan, "TASK_BYTES", task_bytes)
    prepare_synthetic(tmp_path / "set", inputs, num_workers=num_workers, **dirty_settings(folder, dedup))
    assert contents(tmp_path / "set") == contents(expected)


@both_kinds
def test_a_new_rule_version_is_noticed_if_settings_are_equal(corpus, whole, monkeypatch):
    (folder, inputs), (dedup, made) = corpus, whole
    monkeypatch.setattr(Pii, "version", Pii.version + 1)
    with pytest.raises(
        DataError, match=r"fingerprint of the rules of data.steps was '?\w+'?, now '?\w+'?\)\n  hint: choose"
    ):
        prepare_synthetic(made, inputs, **dirty_settings(folder, dedup))

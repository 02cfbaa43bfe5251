"""The folders that a dataset is written to: other files there are never lost."""

import pytest

from data_pipeline.errors import DataError
from data_pipeline.storage.output_paths import folder_to_write
from tests.support.corpus import make_texts, prepare_synthetic, write_folder, write_jsonl


@pytest.fixture
def source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("source") / "texts.jsonl", make_texts(60))


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_other_files_are_never_removed_with_a_dataset(source, tmp_path):
    prepare_synthetic(tmp_path / "set", [source])
    mine = tmp_path / "set" / "mine.jsonl"
    mine.write_bytes(source.read_bytes())
    with pytest.raises(
        DataError, match=r"data.path=.*set: cannot be replaced, because it holds .* \(mine.jsonl\)\n  hint: move those"
    ):
        prepare_synthetic(tmp_path / "set", [mine], overwrite=True)
    assert mine.read_bytes() == source.read_bytes()
    checkpoint = write_folder(tmp_path / "checkpoint", ["weights"])
    (checkpoint / "manifest.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"cannot be replaced, because it holds other files than a dataset \(0000.txt\)"
    ):
        prepare_synthetic(checkpoint, [source], overwrite=True)


def test_a_link_to_a_folder_stays_a_link(source, tmp_path):
    link, target = tmp_path / "set", tmp_path / "big" / "disk"
    link.symlink_to(target)
    prepare_synthetic(link, [source])
    before = contents(target)
    prepare_synthetic(link, [source])
    prepare_synthetic(link, [source], overwrite=True, seq_length=8)
    prepare_synthetic(link, [source], overwrite=True)
    assert link.is_symlink() and contents(target) == before
    assert sorted(entry.name for entry in (*tmp_path.iterdir(), *target.parent.iterdir())) == ["big", "disk", "set"]


@pytest.mark.parametrize("path", ["", ".", "..", "/", "~/data", "~"])
def test_a_path_that_is_not_a_folder_name_is_refused(path):
    with pytest.raises(
        DataError, match=r"data.path=.*: (does not name a folder of its own\n  hint: give one|only a shell expands ~)"
    ):
        folder_to_write(path)

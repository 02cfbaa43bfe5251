"""Where a dataset is written: nothing of others is lost there."""

import pytest

from data_pipeline.errors import DataError
from data_pipeline.storage.output_paths import folder_to_write
from tests.support.corpus import make_texts, prepare_synthetic, write_folder, write_jsonl


@pytest.fixture
def source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("source") / "texts.jsonl", make_texts(60))


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_files_of_others_are_never_removed_with_a_dataset(source, tmp_path):
    prepare_synthetic(tmp_path / "set", [source])
    mine = tmp_path / "set" / "mine.jsonl"
    mine.write_bytes(source.read_bytes())
    with pytest.raises(
        DataError, match=r"data.path=.*set: cannot be replaced, as it holds .* \(mine.jsonl\); move that"
    ):
        prepare_synthetic(tmp_path / "set", [mine], overwrite=True)
    assert mine.read_bytes() == source.read_bytes()
    checkpoint = write_folder(tmp_path / "checkpoint", ["weights"])
    (checkpoint / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"cannot be replaced, as it holds what is not of a dataset \(0000.txt\)"):
        prepare_synthetic(checkpoint, [source], overwrite=True)


def test_a_link_to_a_folder_stays_one(source, tmp_path):
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
def test_a_path_that_names_no_folder_is_refused(path):
    with pytest.raises(DataError, match=r"data.path=.*: (names no folder of its own; give one|only a shell knows ~)"):
        folder_to_write(path)

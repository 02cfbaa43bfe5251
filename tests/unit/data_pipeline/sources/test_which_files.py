"""Each file is read once, and only files meant to be read."""

import logging
import os

import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources import corpus, files
from data_pipeline.sources.corpus import Corpus, log_ignored_files
from tests.support.corpus import data_config, make_texts, prepare_synthetic, write_folder, write_jsonl


def names(tmp_path, *inputs, **changes):
    return [file.name for file in Corpus(data_config(tmp_path / "out", inputs, **changes)).files]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_folder(tmp_path / "in" / "sub", ["a", "b"]).parent


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["in", "in/sub/0001.txt"], "in and in/sub/0001.txt both name the file in/sub/0001.txt, which would be read"),
        (["in/sub/../sub/0000.txt", "in/sub/0000.txt"], "in/sub/../sub/0000.txt and in/sub/0000.txt both name"),
        (["in", "in/sub"], "in and in/sub both name the file"),
        (["in", "in"], "in is listed twice"),
        (["in", "link"], "in and link both name the file link/0000.txt"),
        (["in/sub/0000.txt", "{here}/in/sub/0000.txt"], "both name the file"),
        (["in", "file://{here}/in/sub/0000.txt"], "both name the file"),
        (["stdlib:", "stdlib:"], "stdlib: is listed twice"),
    ],
)
def test_a_file_named_by_two_entries_is_refused(tmp_path, folder, inputs, message):
    (tmp_path / "link").symlink_to(folder / "sub")
    with pytest.raises(DataError, match=rf"data\.inputs: .*{message}".replace("in/sub/..", r"in/sub/\.\.")):
        names(tmp_path, *(given.format(here=tmp_path) for given in inputs))


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_beside_its_file_is_refused(tmp_path, folder, link):
    link(folder / "sub" / "0000.txt", folder / "x.txt")
    with pytest.raises(DataError, match=r"data\.inputs: in/sub/0000\.txt and in/x\.txt, in in, are the same file"):
        names(tmp_path, "in")


def test_files_with_equal_content_are_both_read(tmp_path, folder):
    (folder / "copy.txt").write_text("a")
    assert names(tmp_path, "in") == ["in/copy.txt", "in/sub/0000.txt", "in/sub/0001.txt"]


@pytest.mark.parametrize("given", ["in", "file://{here}/in"])
def test_hidden_files_in_folders_are_ignored_and_counted(tmp_path, folder, given, caplog):
    write_folder(folder / ".ipynb_checkpoints" / "deep", ["a", "b"])
    write_folder(folder / "sub" / ".cache", ["c"])
    (folder / "._0000.txt").write_bytes(b"\x00\x05\x16\x07")
    (folder / ".DS_Store").write_bytes(b"\xff")
    (folder / ".broken").symlink_to(folder)
    found = Corpus(data_config(tmp_path / "out", [given.format(here=tmp_path)]))
    assert [file.name for file in found.files] == ["in/sub/0000.txt", "in/sub/0001.txt"]
    with caplog.at_level(logging.INFO):
        log_ignored_files(found, "data.inputs")
    assert "ignoring 4 files that are hidden" in caplog.text and "._0000.txt" in caplog.text


def test_a_hidden_file_named_directly_is_read(tmp_path, folder):
    hidden = write_folder(tmp_path / ".hidden", ["x"])
    assert names(tmp_path, hidden) == [".hidden/0000.txt"]
    (folder / ".one.txt").write_text("one")
    assert names(tmp_path, folder / ".one.txt") == [str(folder / ".one.txt")]


def test_a_folder_with_only_hidden_files_is_an_error(tmp_path):
    write_folder(tmp_path / "in" / ".cache", ["a", "b", "c"])
    for given in (tmp_path / "in", f"file://{tmp_path}/in"):
        with pytest.raises(DataError, match=r"has no file that .*\(3 hidden files are ignored\)"):
            names(tmp_path, given)


@pytest.mark.parametrize("card", ["README.md", "readme", "README.rst.gz", "sub/Dataset_Card.md"])
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_readme_is_ignored_only_beside_data_files(tmp_path, folder, card, is_remote):
    (folder / card).write_text("What this is.")
    given = f"file://{folder}" if is_remote else folder
    assert len(names(tmp_path, given, include=("*",))) == 3
    write_jsonl(folder / "sub" / "train.jsonl", ["a"])
    assert names(tmp_path, given, include=("*",)) == ["in/sub/0000.txt", "in/sub/0001.txt", "in/sub/train.jsonl"]


def test_new_reading_rules_compare_a_datasets_text_again(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "in", make_texts(60))
    monkeypatch.setattr(corpus, "READING_RULES", 1)
    made = prepare_synthetic(tmp_path / "set", [folder])
    monkeypatch.undo()
    assert prepare_synthetic(tmp_path / "set", [folder]) == made, "they give the same text"
    monkeypatch.setattr(corpus, "READING_RULES", 1)
    monkeypatch.setattr(files, "choose", lambda paths: (sorted(paths), []))
    (folder / ".copy.txt").write_text("a hidden copy")
    prepare_synthetic(tmp_path / "set", [folder], overwrite=True)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"was prepared from other text or settings \(the text in data\.inputs"):
        prepare_synthetic(tmp_path / "set", [folder])

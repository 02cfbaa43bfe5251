"""Files and folders among the inputs: each is read, or is an error that names it."""

import errno
import json
import os

import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.corpus import Corpus
from tests.support.corpus import data_config, write_folder, write_jsonl
from tests.unit.data_pipeline.sources.reading_texts import read, texts


@pytest.mark.parametrize(
    "name", ["a.txt.bz2", "a.jsonl.XZ", "corpus.tar", "corpus.tar.gz", "corpus.tgz", "a.zip", "a.tar.zst"]
)
@pytest.mark.parametrize("is_named", [True, False])
def test_unsupported_archives_are_refused_by_name(tmp_path, name, is_named):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"plain text, in spite of its name")
    given = tmp_path / "in" / name if is_named else tmp_path / "in"
    with pytest.raises(
        DataError, match=rf"data.inputs: \S*{name} (has an unsupported compression|is an archive).*\n  hint: unpack it"
    ):
        read(tmp_path / "out", given, include=["*"])


def test_patterns_ignore_case(tmp_path):
    for name in ("a.TXT", "b.txt", "README.md", "c.TXT.gz.old"):
        (tmp_path / name).write_text(name)
    here = read(tmp_path / "out", tmp_path, include=("*.txt", "readme*"))[1]
    there = read(tmp_path / "out", f"file://{tmp_path}", include=("*.txt", "readme*"))[1]
    assert texts(here) == texts(there) == ["README.md", "a.TXT", "b.txt"]


def test_folders_are_sorted_and_filtered_by_pattern(tmp_path):
    write_folder(tmp_path / "in" / "b", ["2", "3"])
    write_folder(tmp_path / "in" / "a", ["1"])
    write_folder(tmp_path / "in", ["0 other"], suffix=".bin")
    _, documents = read(tmp_path / "out", tmp_path / "in")
    assert [(d.source, d.text) for d in documents] == [
        ("in/a/0000.txt", "1"),
        ("in/b/0000.txt", "2"),
        ("in/b/0001.txt", "3"),
    ]
    _, named = read(tmp_path / "out", tmp_path / "in" / "0000.bin")
    assert texts(named) == ["0 other"]


def test_the_standard_library_is_an_input(tmp_path):
    corpus = Corpus(data_config(tmp_path, ["stdlib:"], include=("*.py",)))
    names = [file.name for file in corpus.files]
    assert "stdlib/argparse.py" in names and "stdlib/json/decoder.py" in names
    assert not any("site-packages" in name or "dist-packages" in name for name in names)
    assert names == sorted(names, key=lambda name: name.split("/"))
    with pytest.raises(DataError, match=r"folder stdlib: has no file that matches data.include=\['\*.none'\]"):
        Corpus(data_config(tmp_path, ["stdlib:"], include=("*.none",)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"data.inputs=\[\]: names no text\n.* data.inputs=\[my.txt\]\n  hint: use data=stdlib"),
        (["missing.txt"], r"data.inputs: missing.txt does not exist"),
        (["folder"], r"data.inputs: folder .*folder has no file that matches data.include=\['\*.txt'"),
    ],
)
def test_inputs_that_name_nothing_are_refused(tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "out", *inputs)


def test_links_are_followed_and_unreadable_files_are_errors(tmp_path, monkeypatch):
    write_folder(tmp_path / "elsewhere", ["linked"])
    folder = write_folder(tmp_path / "in", ["own"])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert texts(read(tmp_path / "out", folder)[1]) == ["own", "linked"]
    for name, target, message in (
        ("gone.txt", tmp_path / "nowhere", "in/gone.txt is a broken link\n  hint: repair it, or remove it"),
        ("again", tmp_path / "elsewhere", "in/link, in .*in, is found twice, through a link|in/again, in .* twice"),
        ("loop", folder, "in/loop, in .*in, is found twice, through a link"),
    ):
        (folder / name).symlink_to(target)
        with pytest.raises(DataError, match=message):
            read(tmp_path / "out", folder)
        (folder / name).unlink()
    real = os.scandir

    def denied(path):
        if str(path).endswith("link"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(
        DataError, match=r"data.inputs: .*in/link, in .*in, cannot be read \(Permission denied\)\n  hint: repair it"
    ):
        read(tmp_path / "out", folder)


def test_a_pipe_is_refused_without_waiting(tmp_path):
    folder = write_folder(tmp_path / "in", ["own"])
    os.mkfifo(folder / "pipe.txt")
    for given, name in ((folder, "in/pipe.txt"), (folder / "pipe.txt", str(folder / "pipe.txt"))):
        with pytest.raises(
            DataError, match=rf"data.inputs: {name} is a pipe, a socket or a device\n  hint: write its text"
        ):
            read(tmp_path / "out", given)


def test_a_name_that_begins_with_a_tilde_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~no-user-of-this-name.txt").write_text("mine")
    assert texts(read(tmp_path / "out", "~no-user-of-this-name.txt")[1]) == ["mine"]


def test_prepare_does_not_read_its_own_output(tmp_path):
    folder = write_folder(tmp_path / "in", ["own"])
    for beside in ("", ".work", ".partial", ".replaced"):
        write_folder(folder / "deep" / f"out{beside}", ["not this"])
    write_folder(folder / "deep" / "output", ["this"])
    assert texts(read(folder / "deep" / "out", folder)[1]) == ["own", "this"]


def test_touching_a_file_changes_the_status_digest(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    before = Corpus(data_config(tmp_path, [path])).status_digest
    assert Corpus(data_config(tmp_path, [path])).status_digest == before
    path.write_text(json.dumps({"text": "b"}) + "\n\n")
    assert Corpus(data_config(tmp_path, [path])).status_digest != before

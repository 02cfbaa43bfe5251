"""A byte order mark names an encoding. That of UTF-8 is not part of the text, and others name what is wrong."""

import gzip
import json

import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources.corpus import Corpus
from tests.support.corpus import data_config

MARK = b"\xef\xbb\xbf"
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def read(path, *, task_bytes=1 << 30, document_bytes=1 << 20, **changes):
    data = data_config(path.parent / "out", [path], **changes)
    found, dropped = [], {}
    for task in Corpus(data).tasks(task_bytes):
        corpus = Corpus(data, task)
        documents = list(corpus.documents(document_bytes))
        assert all(document.num_bytes == len(document.text.encode()) for document in documents)
        found += [document.text for document in documents]
        dropped |= corpus.dropped
    return found, dropped


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_byte_order_marks_of_concatenated_files_are_skipped(tmp_path, suffix, end):
    path = tmp_path / f"in.txt{suffix}"
    parts = [MARK + b"one" + end, MARK + b"two \xef\xbb\xbf within" + end, b"", MARK, MARK + b"three"]
    if not suffix:
        parts = parts[:2] if end else parts[:1]  # in other formats the start of the next file cannot be recognized
    path.write_bytes(b"".join(map(PACK[suffix], parts)))
    assert read(path) == ([b"".join(part.removeprefix(MARK) for part in parts).decode()], {})


def test_a_file_with_only_a_mark_is_empty(tmp_path):
    for name in ("in.txt", "in.jsonl"):
        (tmp_path / name).write_bytes(MARK)
        assert read(tmp_path / name) == ([], {"empty": 1} if name == "in.txt" else {})


@pytest.mark.parametrize("document_bytes", [7, 8, 9, 10, 11, 12])
def test_splitting_a_text_removes_only_its_marks(tmp_path, document_bytes):
    path = tmp_path / "in.txt"
    path.write_bytes(MARK + b"first\n" + MARK + b"second\n" + b"a\xef\xbb\xbfb\n" * 3)
    assert "".join(read(path, document_bytes=document_bytes)[0]) == "first\nsecond\n" + "a\ufeffb\n" * 3


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("task_bytes", [1, 20, 1 << 30])
def test_a_json_line_after_a_mark_is_read(tmp_path, suffix, task_bytes):
    path = tmp_path / f"in.jsonl{suffix}"
    texts = ["first", "\ufeffits own", "joined"]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts]
    path.write_bytes(b"".join(map(PACK[suffix], [MARK + lines[0], lines[1], MARK + lines[2], MARK + b"\n" + MARK])))
    assert read(path, task_bytes=task_bytes) == (texts, {})


def test_errors_after_a_mark_have_the_right_offset(tmp_path):
    for name, content in (("in.jsonl", MARK + b'{"text": "\xff"}\n'), ("in.txt", MARK + b"1234567\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"in\.\w+\S* not UTF-8 at byte 1[03]"):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
def test_a_file_in_another_encoding_is_named_and_not_read(tmp_path, name, encoding, suffix):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACK[suffix](('{"text": "some words"}\n' * 50).encode(encoding)))
    with pytest.raises(DataError, match=rf"{path.name}: is {encoding}, [\s\S]*iconv -f {encoding} -t UTF-8"):
        read(path)
    assert read(path, document_bytes=100, encoding_errors="skip") == ([], {"not_utf8": 1})

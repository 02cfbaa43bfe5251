import collections
import gzip
import io
import tracemalloc

import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources import readers
from data_pipeline.sources.compression import ByteReader
from data_pipeline.sources.corpus import Corpus
from data_pipeline.storage.file_names import compression_of, format_of
from tests.support.corpus import data_config, make_texts, write_folder, write_jsonl
from tests.unit.data_pipeline.sources.reading_texts import read, texts

TEXTS = [*make_texts(6), "日本語 🙂\r\n\x00 no newline at the end", "within \ufeff a line\ufeff"]


@pytest.mark.parametrize("pack", [None, "gz", "zst", "zst frames"])
@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_text_arrives_exactly_as_written(tmp_path, kind, pack):
    folder = tmp_path / "in"
    write_folder(folder, TEXTS)
    if kind == "jsonl":
        for file in folder.iterdir():
            file.unlink()
        write_jsonl(folder / "all.jsonl", TEXTS)
    for file in list(folder.iterdir()) if pack else []:
        content = file.read_bytes()
        if pack == "gz":
            (folder / (file.name + ".gz")).write_bytes(gzip.compress(content))
        else:
            parts = [content] if pack == "zst" else [content[:100], content[100:]]
            compressed = b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)
            (folder / (file.name + ".zst")).write_bytes(compressed)
        file.unlink()
    corpus, documents = read(tmp_path / "out", folder)
    assert texts(documents) == TEXTS
    assert [d.num_bytes for d in documents] == [len(text.encode()) for text in TEXTS]
    assert documents[0].source.startswith("in/") and len({d.source for d in documents}) == len(TEXTS)
    assert corpus.disk_position == corpus.disk_bytes and not corpus.dropped


JSON_LINES = [
    "x.ndjson",
    "x.json",
    "X.JSONL",
    "c4-train.00000-of-01024.json.gz",
    "x.ndjson.GZ",
    "x.jsonl.zst",
    "X.Json.ZST",
]


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("name", JSON_LINES)
def test_each_json_lines_suffix_is_recognized(tmp_path, name, is_named):
    plain = write_jsonl(tmp_path / "plain", TEXTS).read_bytes()
    pack = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress, None: bytes}[compression_of(name)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(pack(plain))
    given = tmp_path / "in" / name if is_named else tmp_path / "in"
    _, documents = read(tmp_path / "out", given, include=("*.jsonl", "*.ndjson", "*.json", "*.gz", "*.zst"))
    assert texts(documents) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.json.txt", "a.jsonl.bak", "json", "a.py", "a.jsonl.gz.txt", "a.TXT.GZ"])
def test_other_suffixes_are_read_as_text(name):
    assert format_of(name) == "text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "name": "x"\n}\n', r"x.json:1: not a JSON object \(Expecting property name"),
        (b'[\n{"text": "a"},\n{"text": "b"}\n]\n', r"x.json:1: not a JSON object \(Expecting value"),
        (b'[{"text": "a"}, {"text": "b"}]', "x.json:1: not a JSON object but an array"),
    ],
)
def test_json_that_is_not_json_lines_is_an_error_with_a_hint(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    rule = r".*, as each line of a .jsonl, .ndjson or .json file must be\n  hint: convert the file with `jq -c`"
    with pytest.raises(DataError, match=message + rule):
        read(tmp_path / "out", tmp_path / "x.json")


@pytest.mark.parametrize("document_bytes", [1, 7, 64, 1000])
def test_long_text_is_cut_at_line_ends_and_loses_nothing(tmp_path, document_bytes):
    text = "日本語🙂 without any line end " * 3 + "\n" + "".join(f"line {n}\n" for n in range(100))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    (tmp_path / "short.txt").write_text("s")
    corpus, documents = read(
        tmp_path / "out", tmp_path / "long.txt", tmp_path / "short.txt", document_bytes=max(4, document_bytes)
    )
    assert "".join(texts(documents)) == text + "s"
    assert all(d.num_bytes <= max(4, document_bytes) for d in documents)
    assert corpus.num_cut_files == (len(text.encode()) > document_bytes)
    if document_bytes == 64:
        assert all(d.text.endswith("\n") for d in documents[-10:-1])


def test_cuts_inside_a_line_are_listed(tmp_path):
    (tmp_path / "a.txt").write_text("short\n" + "x" * 95 + "\n" + "y" * 25 + "\n")
    (tmp_path / "b.txt").write_text("line\n" * 20)
    corpus, documents = read(tmp_path / "out", tmp_path / "a.txt", tmp_path / "b.txt", document_bytes=30)
    ended_inside = [document.source for document in documents if not document.text.endswith("\n")]
    assert corpus.cuts_inside_lines == ended_inside and len(ended_inside) == 3 and corpus.num_cut_files == 2


@pytest.mark.parametrize("document_bytes", [10**12, 10**19])
def test_a_large_document_limit_takes_no_memory(tmp_path, document_bytes):
    text = "".join(make_texts(200))
    (tmp_path / "in.txt").write_bytes(text.encode())
    corpus = Corpus(data_config(tmp_path / "out", [tmp_path / "in.txt"]))
    tracemalloc.start()
    try:
        assert texts(corpus.documents(document_bytes)) == [text]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_empty_documents_are_dropped_and_counted(tmp_path):
    write_folder(tmp_path / "in", ["", "x", ""])
    write_jsonl(tmp_path / "in" / "z.jsonl", ["", "y"])
    corpus, documents = read(tmp_path / "out", tmp_path / "in")
    assert texts(documents) == ["x", "y"] and corpus.dropped == {"empty": 3}


def jsonl(*lines):
    return b"".join(line + b"\n" for line in lines)


GOOD = [b'{"text": "good"}', b'{"text": "more"}']
BAD_FILES = {
    "not_utf8.txt": (
        b"good\nbad \xff\nmore\n",
        "not_utf8",
        r"not_utf8.txt: not UTF-8 at byte 9 \(0xff, invalid start byte\)",
    ),
    "cut.txt": (b"abc\xe6\x97", "not_utf8", r"cut.txt: not UTF-8 at byte 3 \(0xe6, unexpected end of data\)"),
    "utf8.jsonl": (
        jsonl(GOOD[0], b'{"text": "\xfe"}', GOOD[1]),
        "not_utf8",
        r"utf8.jsonl:2: not UTF-8 at byte 27 \(0xfe, invalid start byte\)",
    ),
    "surrogate.jsonl": (
        jsonl(b"", b'{"text": "a\\ud800"}', *GOOD),
        "not_utf8",
        r"surrogate.jsonl:2: not UTF-8: 'text' has a lone surrogate \('\\ud800'\) at character 1",
    ),
    "broken.jsonl": (
        jsonl(GOOD[0], b'{"text": ', GOOD[1]),
        "broken_json",
        r"broken.jsonl:2: not a JSON object \(Exp",
    ),
    "deep.jsonl": (
        jsonl(b"[" * 100000, *GOOD),
        "broken_json",
        r"deep.jsonl:1: not a JSON object \(Expecting value or end",
    ),
    "list.jsonl": (jsonl(b"[1]", *GOOD), "broken_json", r"list.jsonl:1: not a JSON object but an array"),
    "key.jsonl": (
        jsonl(b'{"content": "a"}', *GOOD),
        "no_text",
        r"key.jsonl:1: has no key 'text' \(it has \['content'\]\)",
    ),
    "null.jsonl": (jsonl(b'{"text": null}', *GOOD), "no_text", r"null.jsonl:1: 'text' is null, but must be a string"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unreadable_documents_are_named_or_counted(tmp_path, name):
    content, reason, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "after.txt").write_text("after")
    how = {"document_bytes": 6}  # text is cut at each line
    with pytest.raises(DataError, match=message + r"[\s\S]*data.encoding_errors=skip to drop such documents"):
        read(tmp_path / "out", tmp_path / name, **how)
    inputs = [tmp_path / name, tmp_path / "after.txt"]
    corpus, documents = read(tmp_path / "out", *inputs, encoding_errors="skip", **how)
    assert corpus.dropped == {reason: 1}
    good = [] if name == "cut.txt" else ["good", "more"]
    assert [document.text.strip() for document in documents] == [*good, "after"]


@pytest.mark.parametrize("last", [b"", b"\n", b"\n" + GOOD[1]])
@pytest.mark.parametrize("task_bytes", [1, 60, 5_000, 10**9])
def test_an_endless_line_is_named_or_counted_once(tmp_path, monkeypatch, task_bytes, last):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 16)
    longest, longer = (b'{"text": "%s"}' % (b"x" * size) for size in (87, 88))
    assert len(longest + b"\n") == 100
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(GOOD[0], longest, longer) + b"y" * 10_000 + last)
    with pytest.raises(DataError, match=r"in.jsonl:3: line does not end within 100 bytes\n  hint: repair it"):
        read(tmp_path / "out", path)
    data = data_config(tmp_path / "out", [path], encoding_errors="skip")
    found, dropped = [], collections.Counter()
    for task in Corpus(data).tasks(task_bytes):
        corpus = Corpus(data, task)
        found += texts(corpus.documents(1 << 20))
        dropped += corpus.dropped
    assert found == ["good", "x" * 87, *(["more"] if last[1:] else [])] and dropped == {"endless_line": 2}


@pytest.mark.parametrize(("first", "end"), [(0, None), (5, 1000)])
def test_an_endless_line_takes_bounded_memory(monkeypatch, first, end):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1 << 20)
    raw = io.BytesIO(b"x" * (32 << 20))
    raw.seek(max(first - 1, 0))
    tracemalloc.start()
    try:
        items = list(readers.read_jsonl(ByteReader(raw, "in.jsonl"), "in.jsonl", readers.TextKey("text"), first, end))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(items) == (end is None)
    assert raw.tell() < 1 << 20 or end is None, "a task reads only to its end"

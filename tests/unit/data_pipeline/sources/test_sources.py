import collections
import errno
import gzip
import io
import json
import os
import tracemalloc
import zlib

import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.sources import readers
from data_pipeline.sources.compression import ByteReader
from data_pipeline.sources.corpus import Corpus
from data_pipeline.storage.file_names import compression_of, format_of
from tests.support.corpus import data_config, make_texts, write_folder, write_jsonl

TEXTS = [*make_texts(6), "日本語 🙂\r\n\x00 no newline at the end", "within \ufeff a line\ufeff"]


def read(path, *inputs, document_bytes=1 << 20, **changes):
    corpus = Corpus(data_config(path, inputs, **changes))
    return corpus, list(corpus.documents(document_bytes))


def texts(documents):
    return [document.text for document in documents]


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


@pytest.mark.parametrize("suffix", [".gz", ".GZIP", ".zst", ".zstd"])
def test_each_compression_suffix_is_recognized(tmp_path, suffix):
    pack = gzip.compress if "g" in suffix.lower() else zstandard.ZstdCompressor().compress
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(TEXTS[0].encode()))
    assert texts(read(tmp_path / "out", tmp_path / f"a.txt{suffix}")[1]) == [TEXTS[0]]


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


def test_the_standard_library_is_an_input(tmp_path):
    corpus = Corpus(data_config(tmp_path, ["stdlib:"], include=("*.py",)))
    names = [file.name for file in corpus.files]
    assert "stdlib/argparse.py" in names and "stdlib/json/decoder.py" in names
    assert not any("site-packages" in name or "dist-packages" in name for name in names)
    assert names == sorted(names, key=lambda name: name.split("/"))
    with pytest.raises(DataError, match=r"folder stdlib: has no file that matches data.include=\['\*.none'\]"):
        Corpus(data_config(tmp_path, ["stdlib:"], include=("*.none",)))


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
    "null.jsonl": (jsonl(b'{"text": null}', *GOOD), "no_text", r"null.jsonl:1: 'text' is null, must be a string"),
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


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("errors", ["fail", "skip"])
def test_truncated_or_damaged_compressed_files_are_errors(tmp_path, suffix, errors):
    plain = "\n".join(make_texts(200)).encode()
    whole = gzip.compress(plain) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    path = tmp_path / f"t.txt{suffix}"
    for content, what in [
        (whole[: len(whole) // 2], "truncated"),
        (whole[:-3], "truncated"),
        (b"", "truncated"),
        (whole[:-8] + bytes(8), "damaged"),
        (b"no compression at all", "damaged"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"t.txt{suffix}: compressed file is {what}"):
            read(tmp_path / "out", path, encoding_errors=errors)


def test_nul_bytes_are_padding_only_after_a_gzip_member(tmp_path):
    member, padding = gzip.compress(b"text"), bytes(300_000)
    path = tmp_path / "t.txt.gz"
    path.write_bytes(member + padding + member + padding)
    assert [item.text for item in read(tmp_path / "out", path)[1]] == ["texttext"]
    for content in (padding, padding + member):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"t.txt.gz: compressed file is damaged"):
            read(tmp_path / "out", path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_decompression_takes_bounded_memory(tmp_path, suffix):
    packer = zlib.compressobj(wbits=31) if suffix == ".gz" else zstandard.ZstdCompressor().compressobj()
    path = tmp_path / f"t.txt{suffix}"
    path.write_bytes(b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush())
    with path.open("rb") as raw:
        reader = ByteReader(raw, path.name)
        tracemalloc.start()
        try:
            assert reader.read(1000) == bytes(1000)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most < 64 << 20, f"{most / 1e6:.0f} MB"
        assert sum(iter(lambda: len(reader.read(1 << 20)), 0)) == (256 << 20) - 1000


def test_zstd_frames_of_any_size_are_read_one_after_another(tmp_path):
    parts = [bytes([number]) * size for number, size in enumerate([0, 1, 1023, 5000, 0, 300_000, 7] * 20)]
    path = tmp_path / "t.txt.zst"
    path.write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, parts)))
    with path.open("rb") as raw:
        reader = ByteReader(raw, path.name)
        assert b"".join(iter(lambda: reader.read(10_000), b"")) == b"".join(parts)


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

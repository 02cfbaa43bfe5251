"""Text in Parquet arrives as written, and every error names the file."""

import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.document import Document
from data_pipeline.errors import DataError
from data_pipeline.sources.corpus import Corpus
from tests.support.corpus import data_config, make_texts, prepare_synthetic, write_jsonl

TEXTS = [*make_texts(200), "日本語 🙂\r\n\x00 no newline at the end", "\ufeff"]


def table(texts: list[str | None], kind: pyarrow.DataType | None = None) -> pyarrow.Table:
    return pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, kind or pyarrow.string())})


def write(path: Path, content: pyarrow.Table, **options: object) -> Path:
    pyarrow.parquet.write_table(content, path, **options)
    return path


def read(path: Path, **changes: object) -> tuple[Corpus, list[Document]]:
    corpus = Corpus(data_config(path.parent / "out", [path], **changes))
    return corpus, list(corpus.documents(1 << 20))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize(
    "kind",
    [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
    ids=["string", "large", "dictionary"],
)
def test_text_arrives_exactly_as_written(tmp_path: Path, kind: pyarrow.DataType, compression: str) -> None:
    path = write(
        tmp_path / "in.parquet",
        table(TEXTS).set_column(1, "text", table(TEXTS)["text"].cast(kind)),
        row_group_size=70,
        compression=compression,
    )
    corpus, documents = read(path)
    assert [document.text for document in documents] == TEXTS
    assert [document.num_bytes for document in documents] == [len(text.encode()) for text in TEXTS]
    assert documents[4].source == f"{path}:5"
    assert corpus.disk_position == corpus.disk_bytes and corpus.num_cut_files == 0


def test_parquet_and_jsonl_of_equal_text_give_equal_datasets(tmp_path: Path) -> None:
    lines = prepare_synthetic(tmp_path / "lines", [write_jsonl(tmp_path / "in.jsonl", TEXTS)])
    rows = prepare_synthetic(tmp_path / "rows", [write(tmp_path / "in.parquet", table(TEXTS))])
    assert rows.digest == lines.digest


def test_rows_without_text_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", table(["a", None, "", "b"]))
    with pytest.raises(DataError, match=r"in\.parquet:2: 'text' is null\n  hint: repair it\n.*encoding_errors=skip"):
        read(path)
    corpus, documents = read(path, encoding_errors="skip")
    assert [document.text for document in documents] == ["a", "b"]
    assert corpus.dropped == {"no_text": 1, "empty": 1}


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    broken = pyarrow.array([b"fine", b"not \xff fine"], pyarrow.binary()).view(pyarrow.string())
    path = write(tmp_path / "in.parquet", pyarrow.table({"text": broken}))
    with pytest.raises(DataError, match=r"in\.parquet:2: not UTF-8 at byte 4"):
        read(path)


def test_a_column_is_read_by_name_beside_a_struct_field(tmp_path: Path) -> None:
    struct = pyarrow.array([{"text": "not this", "n": number} for number in range(200)])
    for number, names in enumerate((["meta", "meta.text"], ["meta.text", "meta"])):
        columns = {"meta": struct, "meta.text": pyarrow.array(TEXTS[:200])}
        content = pyarrow.table({name: columns[name] for name in names})
        _, documents = read(write(tmp_path / f"{number}.parquet", content, row_group_size=70), text_key="meta.text")
        assert [document.text for document in documents] == TEXTS[:200]


def test_a_missing_column_lists_the_existing_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", table(["a"]))
    with pytest.raises(DataError, match=r"has no column 'body' \(it has \['id', 'text'\]\)\n  hint: set data.text_key"):
        read(path, text_key="body")
    with pytest.raises(DataError, match=r"column 'id' is int64, but must be string"):
        read(path, text_key="id")


def test_duplicate_columns_are_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])]
    content = pyarrow.Table.from_arrays(columns, names=["text", "body", "text"])
    path = write(tmp_path / "in.parquet", content)
    with pytest.raises(
        DataError,
        match=r"in\.parquet: has 2 columns named 'text'\n  hint: rename all but one\n  hint: set data.text_key",
    ):
        read(path)
    assert [document.text for document in read(path, text_key="body")[1]] == ["b"]


@pytest.mark.parametrize("keep", [0, 3, 100, -9])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "in.parquet", table(TEXTS))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"in\.parquet: Parquet file is damaged"):
        read(path)


def test_a_damaged_page_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", table(TEXTS), compression="zstd")
    content = bytearray(path.read_bytes())
    content[3000:3400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"in\.parquet: Parquet file is damaged"):
        read(path)


def test_parquet_inside_another_compression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet.gz"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="unpack the file"):
        read(path)


def test_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    """Pages are read as needed: a row group of 64 MB stays on disk."""
    big = ["x" * 999 + str(number) for number in range(64_000)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table(big), buffer, compression="none", use_dictionary=False, data_page_size=1 << 16)
    path = tmp_path / "in.parquet"
    path.write_bytes(buffer.getvalue())
    del buffer
    pool = pyarrow.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    corpus = Corpus(data_config(tmp_path / "out", [path]))
    for number, document in enumerate(corpus.documents(1 << 20)):
        assert document.text == big[number]
        most = max(most, pool.bytes_allocated() - before)
    assert most < 8 << 20, f"{most / 1e6:.0f} MB"

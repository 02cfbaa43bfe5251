"""Text at a URL equals the text of the same local file, despite network faults."""

import gzip
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from fsspec.registry import _registry as file_systems_in_use
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError
from data_pipeline.remote import file as remote_file
from data_pipeline.remote.file import open_remote
from data_pipeline.shards.manifest import Manifest
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.files import find_files
from tests.support import http_server as faulty
from tests.support.corpus import cache_config, data_config, make_texts, prepare_synthetic, write_folder, write_jsonl
from tests.support.http_server import Served, serving

TEXTS = make_texts(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources")
    plain = write_jsonl(place / "a.jsonl", TEXTS).read_bytes()
    (place / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    (place / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(plain))
    (place / "a.txt").write_text("".join(TEXTS))
    table = pyarrow.table({"id": list(range(len(TEXTS))), "text": TEXTS})
    pyarrow.parquet.write_table(table, place / "a.parquet", row_group_size=7)
    write_folder(place / "deep" / "b", TEXTS[:3])
    write_folder(place / "deep" / "a", TEXTS[3:5])
    (place / "deep" / "a" / "left.out").write_text("no")
    return place


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as server:
        yield server


def texts(tmp_path: Path, *inputs: Path | str) -> list[str]:
    return [document.text for document in Corpus(data_config(tmp_path / "out", inputs)).documents(1 << 14)]


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return cache_config(tmp_path / "cache")


FILES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.parquet"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["http", "memory", "file"])
def test_text_arrives_exactly_as_written(folder, served, tmp_path, name, place):
    url = {"http": f"{served.url}/{name}", "memory": f"memory://sources/{name}", "file": f"file://{folder}/{name}"}
    fsspec.filesystem("memory").pipe_file(f"/sources/{name}", (folder / name).read_bytes())
    assert texts(tmp_path, url[place]) == texts(tmp_path, folder / name)


@pytest.mark.parametrize("takes_ranges", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_connection_loses_and_repeats_nothing(folder, served, tmp_path, caplog, name, takes_ranges):
    served.takes_ranges = takes_ranges
    patient = cache_config(tmp_path, retries=3)
    corpus = Corpus(data_config(tmp_path / "out", [f"{served.url}/{name}"], cache=patient))
    served.fault(name, faulty.cut, faulty.status(502), faulty.cut)
    assert [document.text for document in corpus.documents(1 << 14)] == texts(tmp_path, folder / name)
    assert corpus.disk_position == corpus.disk_bytes == (folder / name).stat().st_size
    assert served.ranges and ("cannot be read from an offset" in caplog.text) != takes_ranges


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faulty.status(503), r"a.jsonl.gz: cannot be read: HTTP status 503 \(Service Unavailable\), tried 3 times"),
        (faulty.status(403), r"a.jsonl.gz: cannot be read: HTTP status 403 \(Forbidden\)\n  hint: check the address"),
        (faulty.short, r"a.jsonl.gz: cannot be read: has [\d,]+ bytes, must have [\d,]+, tried 3 times"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_permanent_faults_are_named(served, tmp_path, name, fault, message):
    corpus = Corpus(data_config(tmp_path / "out", [f"{served.url}/{name}"]))
    served.lasting[name] = fault
    with pytest.raises(DataError, match=message.replace("a.jsonl.gz", name)):
        list(corpus.documents(1 << 14))


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with serving(tmp_path) as served:
        corpus = Corpus(data_config(tmp_path / "out", [f"{served.url}/a.jsonl"]))
        path.write_text(path.read_text().replace("a", "b", 1))
        with pytest.raises(
            DataError, match=r"a.jsonl: was changed while it was read\n  hint: run the same command again"
        ):
            list(corpus.documents(1 << 14))


@pytest.mark.parametrize("pattern", ["deep", "deep/"])
def test_folders_are_searched_like_local_ones(folder, tmp_path, pattern):
    def of(place):
        corpus = Corpus(data_config(tmp_path / "out", [f"{place}/{pattern}"]))
        return [(document.source, document.text) for document in corpus.documents(1 << 14)]

    assert of(f"file://{folder}") == of(folder)


def test_patterns_match_files(folder, tmp_path):
    assert texts(tmp_path, f"file://{folder}/deep/*/000[01].txt") == TEXTS[3:5] + TEXTS[:2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "HTTP/nothing.txt",
            r"data.inputs: HTTP/nothing.txt: HTTP status 404 \(Not Found\)\n  hint: check the address",
        ),
        ("HTTP/deep/", r"data.inputs: HTTP/deep/: HTTP cannot list a folder\n  hint: name the files"),
        ("HTTP/deep/*.txt", r"data.inputs: HTTP/deep/\*.txt: HTTP cannot list a folder"),
        ("file:///no/such", r"data.inputs: file:///no/such: no such file"),
        ("file:///no/*.such", r"data.inputs: file:///no/\*.such: has no file that matches"),
        ("nothing://a/b", r"data.inputs: nothing://a/b: Protocol not known: nothing"),
        ("pipe:cat a", r"data.inputs: pipe:cat a: a command can only be used for data.path"),
    ],
)
def test_urls_that_match_nothing_are_refused(served, tmp_path, given, message):
    with pytest.raises(DataError, match=message.replace("HTTP/", f"{served.url}/")):
        Corpus(data_config(tmp_path, [given.replace("HTTP", served.url)]))


@pytest.mark.parametrize(("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, scheme, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(file_systems_in_use, scheme, raising=False)  # as if nothing had used it before
    with pytest.raises(DataError, match=rf"{scheme}:// needs a package .*: pip install 'pretrain\[{extra}\]'"):
        Corpus(data_config(tmp_path, [f"{scheme}://bucket/a.txt"]))


def test_touching_a_file_changes_the_status_digest(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    with serving(tmp_path) as served:
        data = data_config(tmp_path / "out", [f"{served.url}/a.jsonl"])
        before = Corpus(data).status_digest
        assert Corpus(data).status_digest == before
        write_jsonl(path, ["b"])
        assert Corpus(data).status_digest != before


def test_a_dataset_prepared_from_urls_is_the_one_prepared_here(folder, served, tmp_path):
    names = ["a.jsonl.gz"]
    here = prepare_synthetic(tmp_path / "here", [folder / name for name in names])
    there = prepare_synthetic(tmp_path / "there", [f"{served.url}/{name}" for name in names])
    assert there.digest == here.digest == Manifest.load(tmp_path / "there").digest
    asked = sum(served.requests.values())
    prepare_synthetic(tmp_path / "there", [f"{served.url}/{name}" for name in names])
    assert sum(served.requests.values()) == asked + len(names)  # unchanged, so not read again


def test_signed_urls_are_stored_without_secrets(served, tmp_path):
    signed = [
        served.url.replace("://", f"://me:{secret}@") + f"/a.jsonl?sig={secret}" for secret in ("SECRET", "OTHER")
    ]
    digest = prepare_synthetic(tmp_path / "set", [signed[0]], report=True).digest
    assert [path for path in (tmp_path / "set").iterdir() if b"SECRET" in path.read_bytes()] == []
    assert Manifest.load(tmp_path / "set").sources[0].name == f"{served.url}/a.jsonl"
    assert prepare_synthetic(tmp_path / "set", [signed[1]], report=True).digest == digest
    assert served.passwords == {"me:SECRET", "me:OTHER"}


CONTENT = bytes(range(256)) * 400
STEP = st.tuples(st.sampled_from(["seek", "ahead", "end"]), st.integers(0, len(CONTENT)), st.integers(0, 30_000))


@settings(max_examples=40)
@given(steps=st.lists(STEP, max_size=8))
def test_a_file_can_be_read_from_any_offset(steps):
    fsspec.filesystem("memory").pipe_file("/any", CONTENT)
    cache = cache_config("unused")
    for skip in (remote_file.SKIP_BYTES, 1000):
        with pytest.MonkeyPatch.context() as patch, open_remote("memory://any", len(CONTENT), None, cache) as file:
            patch.setattr(remote_file, "SKIP_BYTES", skip)
            place = 0
            for how, offset, size in steps:
                place = {"seek": offset, "ahead": place + offset, "end": len(CONTENT) - offset}[how]
                file.seek(*{"seek": (offset,), "ahead": (offset, 1), "end": (-offset, 2)}[how])
                assert file.tell() == place
                assert file.read(size) == CONTENT[place : place + size]
                place = min(place + size, max(place, len(CONTENT)))


def test_closing_a_file_early_ends_its_thread(folder, served, cache):
    [found] = find_files([f"{served.url}/a.txt"], [], cache)
    of_others = set(threading.enumerate())
    with found.open() as file:
        assert file.read(10) == (folder / "a.txt").read_bytes()[:10]
    assert not [thread for thread in set(threading.enumerate()) - of_others if thread.name == "read-ahead"]

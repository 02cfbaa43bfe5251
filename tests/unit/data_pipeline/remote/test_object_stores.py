"""s3:// and gs:// work like a folder, on real servers of both kinds, despite faults in between."""

import dataclasses
import gzip
import logging
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.errors import DataError
from data_pipeline.remote.transfer import blocks
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.files import find_files
from tests.support import http_server as faulty
from tests.support.corpus import cache_config, data_config, make_texts, prepare_synthetic, write_folder, write_jsonl
from tests.unit.data_pipeline.remote.reading import SHARD, everything, remote, take

TEXTS = make_texts(60)
RANDOM = np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources") / "texts"
    place.mkdir()
    (place / "a.jsonl.gz").write_bytes(gzip.compress(write_jsonl(place / "a.jsonl", TEXTS[:30]).read_bytes()))
    (place / "a.jsonl").unlink()
    table = pyarrow.table({"id": list(range(30)), "text": TEXTS[30:]})
    pyarrow.parquet.write_table(table, place / "b.parquet", row_group_size=7)
    write_folder(place / "deep" / "er", TEXTS[:3])
    return place


def texts(tmp_path: Path, *inputs: Path | str) -> list[str]:
    return [document.text for document in Corpus(data_config(tmp_path / "out", inputs)).documents(1 << 14)]


def reported(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Our warnings, such as of a retry, and any stack traces."""
    return [
        record
        for record in caplog.records
        if record.exc_info or (record.name.startswith("data_") and record.levelno > 20)
    ]


def test_a_dataset_gives_the_batches_of_the_local_folder(folder, bucket, cache):
    local = PackedDataset.open(folder / "set", "train")
    there = remote(bucket.put_folder(folder / "set"), cache)
    where = {"rank": 1, "size": 2, "position": 40}
    assert take(there, 30, **where) == take(local, 30, **where)
    asked = bucket.served.requests.copy()
    assert np.array_equal(everything(remote(f"{bucket.url}/set", cache)), everything(local))
    later = bucket.served.requests - asked
    assert later["manifest.json"] == 1 and not [name for name in later if ".tar" in name or ".npy" in name]


def test_a_store_and_a_folder_prepare_equal_datasets(sources, bucket, tmp_path):
    bucket.put_folder(sources)
    names = "a.jsonl.gz", "b.parquet"
    here = prepare_synthetic(tmp_path / "here", [sources / name for name in names])
    there = prepare_synthetic(tmp_path / "there", [f"{bucket.url}/texts/{name}" for name in names])
    assert there.digest == here.digest
    read = sum(bucket.served.requests[name] for name in names)
    prepare_synthetic(tmp_path / "there", [f"{bucket.url}/texts/{name}" for name in names])
    assert sum(bucket.served.requests[name] for name in names) == read  # unchanged, so not read again


@pytest.mark.parametrize("name", ["texts", "texts/", "texts/deep", ""])
def test_folders_are_searched_like_local_ones(sources, bucket, tmp_path, name):
    def of(place: str) -> list[tuple[str, str]]:
        corpus = Corpus(data_config(tmp_path / "out", [place]))
        return [(document.source.rpartition("texts/")[2], document.text) for document in corpus.documents(1 << 14)]

    bucket.put_folder(sources)
    assert of(f"{bucket.url}/{name}") == of(f"{sources.parent}/{name}")


def test_patterns_match_files(sources, bucket, tmp_path):
    bucket.put_folder(sources)
    found = find_files([f"{bucket.url}/texts/**/000[02].t?t"], [], cache_config(tmp_path))
    assert [file.name for file in found] == [f"{bucket.url}/texts/deep/er/000{number}.txt" for number in (0, 2)]
    assert texts(tmp_path, f"{bucket.url}/texts/**/000[02].t?t") == [TEXTS[0], TEXTS[2]]
    with pytest.raises(DataError, match=rf"{bucket.url}/te\?ts/\*.zip: has no file that matches"):
        texts(tmp_path, f"{bucket.url}/te?ts/*.zip")


@pytest.mark.parametrize(
    "name", ["a b.txt", "ä+%20&=.txt", "a#1.txt", "part[1].txt", "a*.txt", "why?.txt", "a:b@c.txt"]
)
def test_names_are_used_literally(bucket, tmp_path, name):
    url = bucket.put(f"with spaces/{name}", b"text of it\n")
    assert texts(tmp_path, url) == ["text of it\n"]
    [found] = find_files([f"{bucket.url}/with spaces"], ["*.txt"], cache_config(tmp_path))
    assert found.name == f"with spaces/{name}"
    with found.open() as file:
        assert file.read() == b"text of it\n"
    assert find_files([url], [], cache_config(tmp_path))[0].name == url


def test_a_missing_object_fails_without_retries(bucket, cache, tmp_path, caplog):
    (tmp_path / "a").write_text("")
    with pytest.raises(
        DataError, match=rf"^{bucket.url}/no/manifest.json: cannot be read: no such file\n  hint: check the addr"
    ):
        remote(f"{bucket.url}/no", cache)
    for url in (f"{bucket.url}/no.txt", f"{bucket.scheme}://no-such-bucket/no.txt"):
        with pytest.raises(DataError, match=rf"^data.inputs: {url}: no such file\n  hint: check the address"):
            texts(tmp_path, url)
    assert not reported(caplog)


def test_an_unreadable_bucket_fails_without_retries(folder, bucket, cache, tmp_path, caplog):
    url = bucket.put_folder(folder / "set")
    bucket.forbid()
    bucket.served.requests.clear()
    with pytest.raises(
        DataError, match=rf"^{url}/manifest.json: cannot be read: .*\n  hint: check the address and its access"
    ):
        remote(url, cache)
    assert bucket.served.requests["about manifest.json"] == 1
    with pytest.raises(DataError, match=rf"^data.inputs: {url}/{SHARD}: .*\n  hint: check the address and its access"):
        texts(tmp_path, f"{url}/{SHARD}")
    assert not reported(caplog)


def test_an_object_replaced_after_listing_is_named(bucket, tmp_path):
    bucket.put("texts/a.txt", b"first\n")
    [found] = find_files([f"{bucket.url}/texts/*.txt"], [], cache_config(tmp_path))
    bucket.put("texts/a.txt", b"other\n")
    with (
        found.open() as file,
        pytest.raises(DataError, match=r"a.txt: was changed while it was read\n  hint: run the same"),
    ):
        file.read()


def test_an_object_changed_between_two_requests_is_named(bucket, cache):
    url = bucket.put("a", RANDOM)
    [found] = find_files([url], [], cache)
    read = blocks(url, cache, size=found.num_bytes, version=found.version)
    assert RANDOM.startswith(next(read))
    bucket.put("a", RANDOM[::-1])
    with pytest.raises(DataError, match=rf"{url}: was changed while it was read\n  hint: run the same command again"):
        list(read)


def test_an_object_deleted_while_it_is_read_is_named(bucket, cache):
    url = bucket.put("a", RANDOM)
    read = blocks(url, cache)
    next(read)
    bucket.files.rm_file(f"{bucket.name}/a")
    with pytest.raises(DataError, match=rf"{url}: cannot be read: no such file"):
        list(read)


def test_missing_credentials_fail_without_retries(bucket, cache, monkeypatch, caplog):
    url = bucket.put("a.txt", b"text\n")
    if bucket.scheme == "s3":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    else:
        bucket.served.every = faulty.status(401)
    with pytest.raises(
        DataError, match=rf"^{url}: cannot be read: .*(credentials|401).*\n  hint: check the address and its access"
    ):
        list(blocks(url, cache))
    assert not reported(caplog)


FAULTS = {
    "500": faulty.status(500),
    "closed connection": faulty.closes,
    "cut": faulty.cut,
    "short, and says so": faulty.short,
    "hangs": faulty.hangs,
}


def passes(handler: faulty.Handler, content: bytes) -> bool:
    return False


@pytest.mark.parametrize("what", ["about a", "a"])
@pytest.mark.parametrize("fault", FAULTS)
def test_transient_faults_resume_without_reading_again(bucket, cache, what, fault):
    url = bucket.put("a", RANDOM)
    bucket.served.fault(what, passes, FAULTS[fault], FAULTS[fault])
    patient = dataclasses.replace(cache, timeout_seconds=2.0, retries=10)
    assert b"".join(blocks(url, patient, size=len(RANDOM), version=find_files([url], [], patient)[0].version)) == RANDOM
    [first, *later] = bucket.served.ranges
    assert first == "bytes=0-1048575" and first not in later


@pytest.mark.parametrize("fault", ["500", "closed connection", "hangs"])
def test_permanent_faults_are_named(bucket, cache, fault):
    url = bucket.put("a", RANDOM)
    bucket.served.lasting["a"] = FAULTS[fault]
    with pytest.raises(
        DataError, match=rf"^{url}: cannot be read: .*, tried 3 times\n  hint: check the file and the network"
    ):
        list(blocks(url, dataclasses.replace(cache, timeout_seconds=0.3)))


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_retry_does_not_wait_for_a_stuck_connection(bucket, cache, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"max_pool_connections": 1}})
    url = bucket.put("a", RANDOM)
    bucket.served.fault("a", faulty.hangs)
    assert b"".join(blocks(url, dataclasses.replace(cache, timeout_seconds=2.0))) == RANDOM


READ_ALL = """
import sys
from data_pipeline.sources.files import find_files
from tests.support.corpus import cache_config
for file in find_files([sys.argv[1]], [], cache_config("unused")):
    print(file.open().read().decode(), end="")
"""


@pytest.mark.parametrize("name", ["a.txt", "*.txt"])
def test_fsspec_settings_in_the_environment_are_used(bucket, name, monkeypatch):
    public = {"ACL": "public-read"} if bucket.scheme == "s3" else {}
    bucket.files.pipe_file(f"{bucket.name}/a.txt", b"text\n", **public)
    if public:
        bucket.files.call_s3("put_bucket_acl", Bucket=bucket.name, **public)
    for known in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(f"FSSPEC_{bucket.scheme.upper()}_ENDPOINT_URL", bucket.served.url)
    anonymous = {"s3": ("FSSPEC_S3_ANON", "true"), "gs": ("FSSPEC_GS_TOKEN", "anon")}
    monkeypatch.setenv(*anonymous[bucket.scheme])
    other = {"s3": "s3a", "gs": "gcs"}[bucket.scheme]
    for url in (bucket.url, bucket.url.replace(bucket.scheme, other, 1)):
        ran = subprocess.run(
            [sys.executable, "-c", READ_ALL, f"{url}/{name}"], capture_output=True, text=True, timeout=60
        )
        assert ran.stdout == "text\n", ran.stderr

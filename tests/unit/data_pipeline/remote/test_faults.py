"""A network fault either changes nothing or is one clear error."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.prepare.dataset import prepare
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.storage.urls import join, redact_url, sibling
from tests.support import http_server as faulty
from tests.support.corpus import data_config, tokenizer_config
from tests.support.http_server import serving
from tests.unit.data_pipeline.remote.reading import INDEX, SHARD, everything, remote, take
from tests.unit.data_pipeline.shards.test_damaged_shards import edit_json, flip
from tests.unit.data_pipeline.shards.test_shards import write

RECOVERED = {
    "500 twice": [faulty.status(500), faulty.status(500)],
    "429": [faulty.status(429)],
    "closed connection": [faulty.closes],
    "cut": [faulty.cut, faulty.cut],
    "short, and says so": [faulty.short],
    "flipped bit": [faulty.flipped],
}


IN_THE_CONTENT = ("short, and says so", "flipped bit")
"""A manifest contains its checksum, so these faults are reported at once, like a damaged file."""


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name in (SHARD, INDEX) for fault in RECOVERED]
    + [("manifest.json", fault) for fault in RECOVERED if fault not in IN_THE_CONTENT],
)
def test_transient_faults_change_nothing(folder, served, cache, fault, name):
    served.fault(name, *RECOVERED[fault])
    dataset = remote(f"{served.url}/set", cache)
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert served.requests[name] == len(RECOVERED[fault]) + 1


@pytest.mark.parametrize("fault", [faulty.hangs, faulty.hangs_in_the_middle])
@pytest.mark.parametrize("name", [SHARD, "manifest.json"])
def test_a_stalled_server_is_retried(folder, served, cache, name, fault):
    served.fault(name, fault)
    dataset = remote(f"{served.url}/set", cache, timeout_seconds=0.2, retries=10)
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert served.requests[name] >= 2


def test_a_broken_connection_resumes_where_it_broke(folder, served, cache):
    served.fault(SHARD, faulty.cut)
    everything(remote(f"{served.url}/set", cache))
    assert served.ranges == [f"bytes={(folder / 'set' / SHARD).stat().st_size // 2}-"]


def test_a_server_that_ignores_ranges_is_noticed(folder, served, cache, caplog):
    served.takes_ranges = False
    served.fault(SHARD, faulty.cut)
    dataset = remote(f"{served.url}/set", cache)
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert f"{SHARD}: cannot be read from an offset: its first" in caplog.text


LASTING = {
    "500": (
        faulty.status(500),
        r"cannot be read: HTTP status 500 \(Internal Server Error\), tried 3 times\n  hint: check the file",
        3,
    ),
    "404": (faulty.status(404), r"cannot be read: HTTP status 404 \(Not Found\)\n  hint: check the address", 1),
    "403": (
        faulty.status(403),
        r"cannot be read: HTTP status 403 \(Forbidden\)\n  hint: check the address and its access",
        1,
    ),
    "closed connection": (faulty.closes, r"cannot be read: .*closed connection.*, tried 3 times", 3),
    "short, and says so": (faulty.short, r"cannot be read: has [\d,]+ bytes, must have [\d,]+, tried 3 times", 3),
    "flipped bit": (
        faulty.flipped,
        r"its content differs .*\(its sha256 does not match\), tried 3 times\n  hint: restore the",
        3,
    ),
}


@pytest.mark.parametrize("fault", LASTING)
def test_permanent_faults_stop_the_run_and_cache_nothing(served, cache, fault):
    does, message, requests = LASTING[fault]
    served.lasting[SHARD] = does
    dataset = remote(f"{served.url}/set", cache)
    with pytest.raises(DataError, match=rf"^{served.url}/set/{SHARD}: {message}"):
        everything(dataset)
    assert served.requests[SHARD] == requests
    assert dataset.record.shards[1].sha256 not in {path.name for path in Path(cache.dir).iterdir()}
    assert not list(Path(cache.dir).glob("*.partial"))


def test_no_number_of_retries_is_too_many(served, cache):
    served.lasting["manifest.json"] = faulty.closes
    with pytest.raises(DataError, match=r"manifest.json: cannot be read: .*, tried 1101 times\n"):
        remote(f"{served.url}/set", cache, retries=1100, retry_seconds=0.0)


def test_a_server_that_never_answers_is_named(served, cache):
    served.lasting["manifest.json"] = faulty.hangs
    with pytest.raises(
        DataError, match=r"cannot be read: no answer in time, tried 3 times\n[\s\S]*data.cache.timeout_seconds"
    ):
        remote(f"{served.url}/set", cache, timeout_seconds=0.05)


def test_a_corrupt_remote_shard_raises_and_is_named(served, cache):
    served.lasting[SHARD] = faulty.flipped
    with pytest.raises(DataError, match=f"{SHARD}: its content differs"):
        take(remote(f"{served.url}/set", cache), 100)


def test_an_address_without_a_server_is_named(cache):
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/set/manifest.json: cannot be read: .*refused, tried 3"):
        remote("http://127.0.0.1:9/set", cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(file="../secret"), "'../secret' must be a plain file name"),
        (lambda m: m.update(sha256="../secret"), "'../secret' is not a sha256"),
    ],
)
def test_a_remote_manifest_cannot_name_other_paths(folder, tmp_path, cache, change, message):
    write(tmp_path / "set")
    record = Manifest.load(tmp_path / "set").splits["train"].shards[0]

    def edit(stored):
        from data_pipeline.shards.manifest import _hash

        assert stored["manifest"]["splits"]["train"]["shards"][0]["file"] == record.file
        change(stored["manifest"]["splits"]["train"]["shards"][0])
        stored["checksum"] = _hash(stored["manifest"])

    edit_json(edit)(tmp_path / "set")
    with serving(tmp_path) as served, pytest.raises(DataError, match=message):
        remote(f"{served.url}/set", cache)


def test_a_damaged_manifest_is_named(tmp_path, cache):
    write(tmp_path / "set")
    flip("manifest.json", 400)(tmp_path / "set")
    with serving(tmp_path) as served, pytest.raises(DataError, match=rf"{served.url}/set/manifest.json: "):
        remote(f"{served.url}/set", cache)


def test_passwords_and_signatures_are_not_shown():
    url = "https://me:secret@host/data/set?sig=secret"
    assert join(url, "a.tar") == "https://me:secret@host/data/set/a.tar?sig=secret"
    assert sibling(url, "b") == "https://me:secret@host/data/b?sig=secret"
    assert redact_url(join(url, "a.tar")) == "https://host/data/set/a.tar"
    assert join("s3://bucket/set/", "a.tar") == "s3://bucket/set/a.tar"


def test_prepare_refuses_a_url_as_output(tmp_path):
    data = data_config(tmp_path, [tmp_path])
    data = dataclasses.replace(data, path="s3://bucket/set")
    with pytest.raises(DataError, match=r"data.path=s3://bucket/set: `prepare` can only write to a disk\n  hint: give"):
        prepare(data, tokenizer_config(), None, seq_length=8)

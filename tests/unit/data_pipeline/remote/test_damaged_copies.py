"""A cached file that is damaged at its full length is fetched again. Only faults of the source are reported."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError
from data_pipeline.remote.folder import RemoteFolder
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.shard_prefetch import fetch_all
from data_pipeline.tools.inspect import verify
from tests.support import http_server as faulty
from tests.support.corpus import make_texts, prepare_synthetic, write_jsonl
from tests.support.http_server import serving
from tests.unit.data_pipeline.remote.reading import INDEX, SHARD, everything, remote
from tests.unit.data_pipeline.shards.test_damaged_shards import flip, rewrite_manifest
from tests.unit.data_pipeline.shards.test_shards import write

PLACE = 650


def damage(folder: Path, name: str, cache: CacheConfig) -> Path:
    """Flip a bit in the cache's copy of a file; returns its path."""
    files = {record.file: record for record in Manifest.load(folder).splits["train"].files}
    copy = Path(cache.dir) / files[name].sha256
    flip(copy.name, PLACE)(copy.parent)
    return copy


@pytest.mark.parametrize("name", [SHARD, INDEX])
def test_a_damaged_copy_is_named_and_fetched_again(folder, served, cache, caplog, name):
    local = everything(PackedDataset.open(folder / "set", "train"))
    everything(remote(f"{served.url}/set", cache))
    copy = damage(folder / "set", name, cache)
    for _ in range(2):
        dataset = PackedDataset.open(RemoteFolder(f"{served.url}/set", cache), "train", skip_bad_shards=True)
        skipped = np.zeros(dataset.num_samples, dtype=bool)
        assert np.array_equal(dataset.read(np.arange(dataset.num_samples), skipped=skipped), local)
        assert not skipped.any()
    assert served.requests[name] == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{copy}: this copy is damaged (its sha256 does not match); {name} is fetched again"
    ]


def test_a_copy_repaired_by_another_process_is_not_fetched(folder, served, cache):
    datasets = [remote(f"{served.url}/set", cache) for _ in range(2)]
    first = int(datasets[0].record.shards[0].samples)
    for dataset in datasets:  # both have the file mapped, and have not checked its first member
        dataset.read(np.array([first + 4]))
    damage(folder / "set", SHARD, cache)
    for dataset in datasets:
        assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert served.requests[SHARD] == 2


def test_a_copy_being_repaired_by_another_process_is_kept(folder, served, cache, monkeypatch):
    everything(remote(f"{served.url}/set", cache))
    damage(folder / "set", SHARD, cache)
    read = hashlib.file_digest

    def read_slowly(file: BinaryIO, name: str) -> object:
        digest = read(file, name)
        monkeypatch.setattr(hashlib, "file_digest", read)
        everything(remote(f"{served.url}/set", cache))
        return digest

    monkeypatch.setattr(hashlib, "file_digest", read_slowly)
    everything(remote(f"{served.url}/set", cache))
    assert served.requests[SHARD] == 2


def test_a_damaged_source_is_named_and_not_cached(folder, served, cache):
    everything(remote(f"{served.url}/set", cache))
    copy = damage(folder / "set", SHARD, cache)
    served.lasting[SHARD] = faulty.flipped
    dataset = remote(f"{served.url}/set", cache)
    for _ in range(2):
        with pytest.raises(
            DataError, match=rf"^{served.url}/set/{SHARD}: its content differs .*, tried 3 times\n  hint: rest"
        ):
            everything(dataset)
    assert not copy.exists()


def test_a_wrongly_written_shard_is_not_fetched_again(tmp_path, cache):
    write(tmp_path / "set")
    rewrite_manifest(tmp_path / "set", index=lambda index: index ^ [0, 1])  # the hash of each member
    with serving(tmp_path) as served:
        dataset = remote(f"{served.url}/set", cache)
        with pytest.raises(DataError, match=r"/set/train-00000.tar: the content of member .* differs from what `prep"):
            everything(dataset)
        assert served.requests["train-00000.tar"] == 1


@pytest.mark.parametrize("repair", [fetch_all, verify])
def test_fetching_and_verifying_leave_no_damaged_copy(tmp_path, cache, repair):
    prepare_synthetic(tmp_path / "set", [write_jsonl(tmp_path / "texts.jsonl", make_texts(40))])
    with serving(tmp_path) as served:
        fetch_all(RemoteFolder(f"{served.url}/set", cache))
        copies = [damage(tmp_path / "set", name, cache) for name in ("train-00000.tar", INDEX)]
        damaged = [copy.read_bytes() for copy in copies]
        reported = repair(RemoteFolder(f"{served.url}/set", cache))
        assert not reported or "MB, in" in reported
        assert all(copy.read_bytes() != before for copy, before in zip(copies, damaged, strict=True))
        asked = served.requests.copy()
        everything(remote(f"{served.url}/set", cache))
        assert served.requests - asked == {"manifest.json": 1}

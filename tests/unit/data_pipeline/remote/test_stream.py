"""A dataset at a URL gives the same batches as its folder."""

import dataclasses
import os
import re
import signal
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.dataset_locations import dataset_folders, open_folder
from data_pipeline.stream.loader import train_batches
from data_pipeline.stream.mixture import MixturePlan, open_mixture
from data_pipeline.stream.shard_prefetch import shards_by_first_use
from data_pipeline.tools.inspect import inspect, stats, verify
from tests.support import http_server as faulty
from tests.support.corpus import (
    data_config,
    make_texts,
    prepare_synthetic,
    write_jsonl,
)
from tests.support.http_server import serving
from tests.unit.data_pipeline.remote.reading import everything, finished, remote, take


@pytest.mark.parametrize("rank", [0, 1])
def test_training_order_from_a_url_equals_the_local_order(folder, served, cache, rank):
    local = PackedDataset.open(folder / "set", "train")
    there = remote(f"{served.url}/set", cache)
    where = {"rank": rank, "size": 2, "position": 40}
    assert take(there, 30, **where) == take(local, 30, **where)
    assert there.digest_before(0) == local.digest_before(0)


def test_a_mixture_from_urls_equals_the_local_one(folder, served, cache):
    plan = MixturePlan({"set": 0.7, "other": 0.3}, {}, [])
    data = data_config(Path("unused"), [], mixture={"set": 0.7, "other": 0.3}, cache=cache)
    data = dataclasses.replace(data, path=f"{served.url}/any")
    there = open_mixture(plan, dataset_folders(data))
    assert take(there, 20) == take(open_mixture(plan, {name: folder / name for name in ("set", "other")}), 20)
    # A file that no batch has needed yet may be missing.
    cached = {path.name for path in finished(cache)}
    assert cached
    assert cached <= {record.sha256 for part in there.parts for record in part.record.files}


def test_datasets_with_equal_shard_names_do_not_mix(folder, served, cache):
    for name in ("set", "other"):
        assert np.array_equal(
            everything(remote(f"{served.url}/{name}", cache)), everything(PackedDataset.open(folder / name, "train"))
        )


def test_every_file_is_requested_once_and_then_cached(folder, served, cache):
    dataset = remote(f"{served.url}/set", cache)
    take(dataset, 10)
    everything(dataset)
    shards = [record.file for record in dataset.record.files]
    assert len(shards) > 4 and [served.requests[name] for name in shards] == [1] * len(shards)
    everything(remote(f"{served.url}/set", cache))
    assert [served.requests[name] for name in shards] == [1] * len(shards)


def test_shards_are_fetched_in_order_of_first_use(folder, served, cache):
    dataset = remote(f"{served.url}/set", cache)
    order = [record.file for _, record in shards_by_first_use(dataset, 3, 100)]
    numbers = dataset.sample_indices(np.arange(100, 100 + dataset.num_samples), 3)
    met = [record.file for number in numbers for _, _, record in dataset.shards_of(np.array([number]))]
    assert order == list(dict.fromkeys(met)) and sorted(order) == [record.file for record in dataset.record.shards]


@pytest.mark.parametrize(
    ("weights", "later"),
    [({"set": 0.999, "other": 0.001}, ()), ({"set": 1.0}, ((10**9, {"other": 1.0}),))],
    ids=["rare", "in a later phase"],
)
def test_rarely_used_shards_of_a_mixture_are_prefetched_too(folder, served, cache, weights, later):
    data = data_config(Path("unused"), [], mixture={"set": 0.5, "other": 0.5}, cache=cache)
    data = dataclasses.replace(data, path=f"{served.url}/any")
    mixed = open_mixture(MixturePlan(weights, {}, later), dataset_folders(data))
    order = [record.sha256 for _, record in shards_by_first_use(mixed, 3, 0)]
    assert sorted(order) == sorted(record.sha256 for part in mixed.parts for record in part.record.shards)


def test_closing_a_stream_ends_its_fetches_at_once(folder, served, cache):
    dataset = remote(f"{served.url}/set", cache, retry_seconds=60.0)
    for record in dataset.record.shards:
        served.lasting[record.file] = faulty.status(503)
    of_others = set(threading.enumerate())
    stream = train_batches(dataset, seed=3, global_batch_size=8, rank=0, size=1, position=0)
    # A process started in the background by a shell ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    finally:
        signal.signal(signal.SIGINT, before)
    stream.close()
    assert time.monotonic() - started < 5
    left = set(threading.enumerate()) - of_others
    assert not [thread for thread in left if thread.name in ("fetch", "read-ahead")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prepared")
    prepare_synthetic(place / "set", [write_jsonl(place / "texts.jsonl", make_texts(40))])
    return place / "set"


def test_a_dataset_at_a_url_is_inspected_verified_and_counted(prepared, cache):
    with serving(prepared.parent) as served:
        there = open_folder(f"{served.url}/set", cache)
        assert list(inspect(there, "train", 0, 3, shuffled_by=5)) == list(
            inspect(prepared, "train", 0, 3, shuffled_by=5)
        )
        assert stats(there) == stats(prepared)
        assert verify(there) == []
        # The remote files are verified, not the cached copies.
        served.lasting["validation-00000.tar"] = faulty.flipped
        assert [re.sub(r".*/", "", fault) for fault in verify(there)] == [
            "validation-00000.tar: its content differs from what was written (its sha256 does not match)"
        ]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_fsspec_file_system_works(folder, cache, scheme):
    url = f"file://{folder}/set"
    if scheme == "memory":
        url = "memory://bucket/set"
        for file in (folder / "set").iterdir():
            fsspec.filesystem("memory").pipe_file(f"/bucket/set/{file.name}", file.read_bytes())
    assert np.array_equal(everything(remote(url, cache)), everything(PackedDataset.open(folder / "set", "train")))
    with pytest.raises(
        DataError, match=r"nowhere/manifest.json: cannot be read: no such file\n  hint: check the address"
    ):
        remote(url.replace("set", "nowhere"), cache)

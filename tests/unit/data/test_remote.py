"""A dataset at a URL gives what the same folder gives, whatever the network does on the way, or one clear error."""

import dataclasses
import fcntl
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError
from data_pipeline.folders import dataset_folders, open_folder
from data_pipeline.inspection import inspect, stats, verify
from data_pipeline.loader import train_batches
from data_pipeline.mixture import Plan, mix
from data_pipeline.prepare import prepare
from data_pipeline.remote.addresses import join, shown, sibling
from data_pipeline.remote.ahead import check_cache_holds, fetch_ahead, first_needs
from data_pipeline.remote.folder import RemoteFolder
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from tests.support import http_server as faulty
from tests.support.corpus import (
    cache_config,
    data_config,
    make_texts,
    prepare_synthetic,
    tokenizer_config,
    write_jsonl,
)
from tests.support.http_server import Served, serving
from tests.unit.data.test_shards import DOCUMENTS, edit_json, flip, write

SHARD, INDEX = "train-00001.tar", "train.index.npy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("remote")
    write(place / "set")
    write(place / "other", DOCUMENTS[::-1])
    return place


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return cache_config(tmp_path / "cache")


def remote(url: str, cache: CacheConfig, **changes: object) -> PackedDataset:
    return PackedDataset.open(RemoteFolder(url, dataclasses.replace(cache, **changes)), "train")


def everything(dataset: PackedDataset) -> np.ndarray:
    return dataset.read(np.arange(dataset.num_samples))


def take(dataset, number: int, **options: int) -> list[tuple[list[list[int]], int]]:
    stream = train_batches(dataset, seed=3, global_batch_size=8, **{"rank": 0, "size": 1, "position": 0, **options})
    batches = [(batch.tokens.tolist(), batch.digest) for batch in itertools.islice(stream, number)]
    stream.close()
    return batches


def finished(cache: CacheConfig) -> list[Path]:
    return [path for path in Path(cache.dir).iterdir() if len(path.name) == 64]


# What a run gets.


@pytest.mark.parametrize("rank", [0, 1])
def test_training_order_from_a_url_equals_the_local_order_bit_for_bit(folder, served, cache, rank):
    local = PackedDataset.open(folder / "set", "train")
    there = remote(f"{served.url}/set", cache)
    where = {"rank": rank, "size": 2, "position": 40}
    assert take(there, 30, **where) == take(local, 30, **where)
    assert there.digest_before(0) == local.digest_before(0)


def test_a_mixture_from_urls_equals_the_local_one(folder, served, cache):
    plan = Plan({"set": 0.7, "other": 0.3}, {}, [])
    data = data_config(Path("unused"), [], mixture={"set": 0.7, "other": 0.3}, cache=cache)
    data = dataclasses.replace(data, path=f"{served.url}/any")
    there = mix(plan, dataset_folders(data))
    assert take(there, 20) == take(mix(plan, {name: folder / name for name in ("set", "other")}), 20)
    # A file that no batch has asked for yet need not be there.
    cached = {path.name for path in finished(cache)}
    assert cached
    assert cached <= {record.sha256 for part in there.parts for record in part.record.files}


def test_datasets_with_equal_names_of_shards_do_not_mix(folder, served, cache):
    for name in ("set", "other"):
        assert np.array_equal(
            everything(remote(f"{served.url}/{name}", cache)), everything(PackedDataset.open(folder / name, "train"))
        )


def test_every_file_is_asked_for_once_and_found_in_the_cache_later(folder, served, cache):
    dataset = remote(f"{served.url}/set", cache)
    take(dataset, 10)
    everything(dataset)
    shards = [record.file for record in dataset.record.files]
    assert len(shards) > 4 and [served.requests[name] for name in shards] == [1] * len(shards)
    everything(remote(f"{served.url}/set", cache))
    assert [served.requests[name] for name in shards] == [1] * len(shards)


def test_shards_are_fetched_in_the_order_in_which_a_run_needs_them(folder, served, cache):
    dataset = remote(f"{served.url}/set", cache)
    order = [record.file for _, record in first_needs(dataset, 3, 100)]
    numbers = dataset.samples_at(np.arange(100, 100 + dataset.num_samples), 3)
    met = [record.file for number in numbers for _, _, record in dataset.shards_of(np.array([number]))]
    assert order == list(dict.fromkeys(met)) and sorted(order) == [record.file for record in dataset.record.shards]


def test_a_stream_that_is_left_ends_its_fetching_at_once(folder, served, cache):
    dataset = remote(f"{served.url}/set", cache, retry_seconds=60.0)
    for record in dataset.record.shards:
        served.lasting[record.file] = faulty.status(503)
    stream = train_batches(dataset, seed=3, global_batch_size=8, rank=0, size=1, position=0)
    # What a shell starts in the background ignores the signal.
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
    assert not [thread for thread in threading.enumerate() if thread.name in ("fetch", "read-ahead")]


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
        # What is verified is what lies there, not what is in the cache.
        served.lasting["validation-00000.tar"] = faulty.flipped
        assert [re.sub(r".*/", "", fault) for fault in verify(there)] == [
            "validation-00000.tar: its content differs from what was written (sha256 does not fit)"
        ]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_file_system_of_fsspec_serves(folder, cache, scheme):
    url = f"file://{folder}/set"
    if scheme == "memory":
        url = "memory://bucket/set"
        for file in (folder / "set").iterdir():
            fsspec.filesystem("memory").pipe_file(f"/bucket/set/{file.name}", file.read_bytes())
    assert np.array_equal(everything(remote(url, cache)), everything(PackedDataset.open(folder / "set", "train")))
    with pytest.raises(DataError, match=r"nowhere/manifest.json: cannot be read: no such file; check the address"):
        remote(url.replace("set", "nowhere"), cache)


# What goes wrong on the way.

RECOVERED = {
    "500 twice": [faulty.status(500), faulty.status(500)],
    "429": [faulty.status(429)],
    "closed connection": [faulty.closes],
    "cut": [faulty.cut, faulty.cut],
    "short, and says so": [faulty.short],
    "flipped bit": [faulty.flipped],
}


IN_THE_CONTENT = ("short, and says so", "flipped bit")
"""A manifest has its checksum inside: such faults of it are told at once, as a damaged file is."""


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name in (SHARD, INDEX) for fault in RECOVERED]
    + [("manifest.json", fault) for fault in RECOVERED if fault not in IN_THE_CONTENT],
)
def test_faults_that_pass_change_nothing(folder, served, cache, fault, name):
    served.fault(name, *RECOVERED[fault])
    dataset = remote(f"{served.url}/set", cache)
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert served.requests[name] == len(RECOVERED[fault]) + 1


@pytest.mark.parametrize("fault", [faulty.hangs, faulty.hangs_in_the_middle])
@pytest.mark.parametrize("name", [SHARD, "manifest.json"])
def test_a_server_that_says_nothing_more_is_asked_again(folder, served, cache, name, fault):
    served.fault(name, fault)
    dataset = remote(f"{served.url}/set", cache, timeout_seconds=0.2, retries=10)
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert served.requests[name] >= 2


def test_a_broken_connection_is_taken_up_where_it_broke(folder, served, cache):
    served.fault(SHARD, faulty.cut)
    everything(remote(f"{served.url}/set", cache))
    assert served.ranges == [f"bytes={(folder / 'set' / SHARD).stat().st_size // 2}-"]


def test_a_server_that_ignores_ranges_is_noticed(folder, served, cache, caplog):
    served.takes_ranges = False
    served.fault(SHARD, faulty.cut)
    dataset = remote(f"{served.url}/set", cache)
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert f"{SHARD}: cannot be entered at a byte: its first" in caplog.text


LASTING = {
    "500": (faulty.status(500), r"cannot be read: HTTP status 500 \(Internal Server Error\), tried 3 times; mend", 3),
    "404": (faulty.status(404), r"cannot be read: HTTP status 404 \(Not Found\); check the address", 1),
    "403": (faulty.status(403), r"cannot be read: HTTP status 403 \(Forbidden\); check the address, and who may", 1),
    "closed connection": (faulty.closes, r"cannot be read: .*closed connection.*, tried 3 times", 3),
    "short, and says so": (faulty.short, r"cannot be read: has [\d,]+ bytes, must have [\d,]+, tried 3 times", 3),
    "flipped bit": (faulty.flipped, r"its content differs .*\(sha256 does not fit\), tried 3 times; restore the", 3),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_stays_bad_stops_the_run_and_leaves_nothing_in_the_cache(served, cache, fault):
    does, message, requests = LASTING[fault]
    served.lasting[SHARD] = does
    dataset = remote(f"{served.url}/set", cache)
    with pytest.raises(DataError, match=rf"^{served.url}/set/{SHARD}: {message}"):
        everything(dataset)
    assert served.requests[SHARD] == requests
    assert dataset.record.shards[1].sha256 not in {path.name for path in Path(cache.dir).iterdir()}
    assert not list(Path(cache.dir).glob("*.partial"))


def test_a_server_that_never_answers_is_named(served, cache):
    served.lasting["manifest.json"] = faulty.hangs
    with pytest.raises(
        DataError, match=r"cannot be read: no answer in time, tried 3 times; .*data.cache.timeout_seconds"
    ):
        remote(f"{served.url}/set", cache, timeout_seconds=0.05)


def test_a_bad_shard_stops_a_stream_of_batches(served, cache):
    served.lasting[SHARD] = faulty.flipped
    with pytest.raises(DataError, match=f"{SHARD}: its content differs"):
        take(remote(f"{served.url}/set", cache), 100)


def test_where_no_server_is_the_address_is_named(cache):
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/set/manifest.json: cannot be read: .*refused, tried 3"):
        remote("http://127.0.0.1:9/set", cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(file="../secret"), "'../secret' is no name of a file beside it"),
        (lambda m: m.update(sha256="../secret"), "'../secret' is no sha256"),
    ],
)
def test_a_manifest_from_elsewhere_names_no_other_places(folder, tmp_path, cache, change, message):
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
    assert shown(join(url, "a.tar")) == "https://host/data/set/a.tar"
    assert join("s3://bucket/set/", "a.tar") == "s3://bucket/set/a.tar"


def test_prepare_does_not_write_to_a_url(tmp_path):
    data = data_config(tmp_path, [tmp_path])
    data = dataclasses.replace(data, path="s3://bucket/set")
    with pytest.raises(DataError, match=r"data.path=s3://bucket/set: `prepare` writes to a disk; give"):
        prepare(data, tokenizer_config(), None, seq_length=8)


# The cache.


def test_a_cache_below_the_dataset_evicts_the_least_recently_used_and_stays_in_its_bound(folder, served, cache):
    local = PackedDataset.open(folder / "set", "train")
    sizes = [record.bytes for record in local.record.shards]
    limit = 3 * max(sizes)
    dataset = remote(f"{served.url}/set", cache, max_bytes=limit)
    assert np.array_equal(everything(dataset), everything(local))
    assert sum(path.stat().st_size for path in Path(cache.dir).iterdir()) <= limit
    kept = {path.name for path in finished(cache)}
    assert kept <= {record.sha256 for record in local.record.shards[-3:]}
    # Open files outlive their eviction.
    assert np.array_equal(everything(dataset), everything(local))
    dataset.close()
    assert np.array_equal(everything(dataset), everything(local))


def test_a_run_that_the_cache_cannot_hold_is_refused_with_the_numbers(served, cache):
    dataset = remote(f"{served.url}/set", cache)
    needed = sum(record.bytes for record in dataset.record.files)
    check_cache_holds([remote(f"{served.url}/set", cache, max_bytes=needed)] * 2)
    with pytest.raises(DataError, match=rf"data.cache.max_bytes={needed - 1:,}: .* have {needed:,} bytes"):
        check_cache_holds([remote(f"{served.url}/set", cache, max_bytes=needed - 1)])


def test_a_shard_larger_than_the_cache_is_refused(served, cache):
    with pytest.raises(DataError, match=r"data.cache.max_bytes=2,000: train-00000.tar alone has [\d,]+ bytes"):
        everything(remote(f"{served.url}/set", cache, max_bytes=2000))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_names_the_cache_and_leaves_no_part(folder, served, tmp_path):
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path / "disk"], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        config = cache_config(tmp_path / "disk")
        dataset = PackedDataset.open(RemoteFolder(f"{served.url}/set", config), "train")
        with pytest.raises(DataError, match=rf"data.cache.dir={tmp_path}/disk: no space left on the disk; free some"):
            everything(dataset)
        assert not list((tmp_path / "disk").glob("*.partial"))
        with pytest.raises(DataError, match=r"data.cache.dir=.*bytes are still to be fetched, the disk has room for"):
            check_cache_holds([dataset])
        dataset.close()
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_a_folder_that_cannot_be_written_is_named(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.cache.dir=.*file/cache: cannot be used \(.*\); choose another"):
        remote(f"{served.url}/set", cache_config(tmp_path / "file" / "cache"))


def test_a_file_of_another_length_is_fetched_again(folder, served, cache):
    everything(remote(f"{served.url}/set", cache))
    victim = finished(cache)[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    everything(remote(f"{served.url}/set", cache))
    assert sum(served.requests.values()) == 3 + len(finished(cache))


READ_ALL = """
import sys
import numpy as np
from data_pipeline.remote.folder import RemoteFolder
from data_pipeline.shards.reader import PackedDataset
from tests.support.corpus import cache_config
dataset = PackedDataset.open(RemoteFolder(sys.argv[1], cache_config(sys.argv[2])), "train")
print(dataset.read(np.arange(dataset.num_samples)).sum())
"""


def reader(url: str, cache: CacheConfig) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", READ_ALL, url, str(cache.dir)], stdout=subprocess.PIPE)


def test_two_processes_fetch_each_file_once(folder, served, cache):
    slow = lambda handler, content: time.sleep(0.02)  # noqa: E731
    local = PackedDataset.open(folder / "set", "train")
    for record in local.record.files:
        served.lasting[record.file] = slow
    processes = [reader(f"{served.url}/set", cache) for _ in range(2)]
    assert [int(process.communicate()[0]) for process in processes] == [everything(local).sum()] * 2
    assert [served.requests[record.file] for record in local.record.files] == [1] * len(local.record.files)
    assert served.requests["manifest.json"] == 2


def test_what_a_killed_fetcher_leaves_is_not_trusted_and_holds_nobody_up(folder, served, cache):
    served.fault(SHARD, faulty.hangs_in_the_middle)
    sha256 = Manifest.load(folder / "set").splits["train"].shards[1].sha256
    partial = Path(cache.dir) / f"{sha256}.partial"
    process = reader(f"{served.url}/set", cache)
    while not (partial.exists() and partial.stat().st_size):  # the server hangs in the middle of it
        assert process.poll() is None
        time.sleep(0.01)
    with partial.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.communicate()
    assert partial.exists() and not (Path(cache.dir) / sha256).exists()
    dataset = remote(f"{served.url}/set", cache)
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    assert not partial.exists()


def test_a_shard_that_another_process_was_fetching_when_it_was_killed_is_fetched_in_its_place(folder, served, cache):
    record = Manifest.load(folder / "set").splits["train"].shards[1]
    Path(cache.dir).mkdir()
    other = (Path(cache.dir) / f"{record.sha256}.partial").open("wb")
    fcntl.flock(other, fcntl.LOCK_EX)
    dataset = remote(f"{served.url}/set", cache)
    stop = threading.Event()
    with fetch_ahead(dataset, 3, 0, stop):
        while len(finished(cache)) < len(dataset.record.files) - 1:
            time.sleep(0.01)
        assert not served.requests[record.file]
        other.close()  # as a killed process does
        while len(finished(cache)) < len(dataset.record.files):
            time.sleep(0.01)
    assert served.requests[record.file] == 1


def test_what_a_killed_fetcher_leaves_is_evicted(folder, served, cache):
    Path(cache.dir).mkdir()
    left = Path(cache.dir) / ("0" * 64 + ".partial")
    left.write_bytes(bytes(100_000))
    limit = sum(record.bytes for record in Manifest.load(folder / "set").splits["train"].files)
    everything(remote(f"{served.url}/set", cache, max_bytes=limit))
    assert not left.exists()


# Commands.


def pipe(folder: Path, command: str = "cat") -> str:
    return f"pipe:{command} '{folder}/set/'{{file}}"


def test_commands_are_refused_unless_the_configuration_allows_them(folder, cache, tmp_path):
    with pytest.raises(
        DataError, match=r"data.path=pipe:touch .*: is a command to run; set data.cache.allow_pipe=true"
    ):
        open_folder(f"pipe:touch {tmp_path}/ran {{file}}", cache)
    assert not (tmp_path / "ran").exists()


def test_a_command_is_read_without_a_shell(folder, cache, tmp_path):
    allowed = dataclasses.replace(cache, allow_pipe=True)
    dataset = PackedDataset.open(RemoteFolder(pipe(folder), allowed), "train")
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    shell = f"pipe:cat {{file}} ; touch {tmp_path}/ran"
    with pytest.raises(DataError, match=r"exit code 1 \(cat: .*\), tried 3 times"):
        PackedDataset.open(RemoteFolder(shell, allowed), "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pipe:cat set", r"must name the file to print as \{file\}"),
        ("pipe:no-such-command {file}", r"manifest.json: cannot be read: the command cannot be started"),
        ("pipe:sleep 5{file}", r"the command ended with exit code 1 \(.*\), tried 2 times"),
        ("pipe:sh -c 'sleep 5' {file}", r"the command printed nothing in time, tried 2 times"),
        ("pipe:'cat {file}", r"the command cannot be started \(No closing quotation\)"),
    ],
)
def test_commands_that_fail_are_named(cache, command, message):
    allowed = dataclasses.replace(
        cache, allow_pipe=True, timeout_seconds=0.2 if "printed" in message else 5.0, retries=1
    )
    with pytest.raises(DataError, match=message):
        PackedDataset.open(RemoteFolder(command, allowed), "train")


def test_half_of_what_a_failing_command_prints_is_not_taken_for_all(folder, cache):
    allowed = dataclasses.replace(cache, allow_pipe=True)
    script = f"pipe:sh -c 'head -c 300 {folder}/set/$0; exit 3' {{file}}"
    with pytest.raises(DataError, match=r"the command ended with exit code 3, tried 3 times"):
        PackedDataset.open(RemoteFolder(script, allowed), "train")


def test_a_mixture_needs_neighbours(cache):
    data = data_config(Path("unused"), [], mixture={"a": 1.0}, cache=cache)
    data = dataclasses.replace(data, path="pipe:cat {file}")
    with pytest.raises(DataError, match="nothing lies beside a command"):
        dataset_folders(data)

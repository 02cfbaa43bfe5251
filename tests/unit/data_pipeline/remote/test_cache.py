"""The cache stays within its limit, is shared by processes, and never returns a partial file."""

import fcntl
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import CacheConfig
from data_pipeline.errors import DataError
from data_pipeline.remote import cache as caches
from data_pipeline.remote import cache_waits, transfer
from data_pipeline.shards import reader
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.shard_prefetch import check_cache_holds, prefetch_shards
from tests.support import http_server as faulty
from tests.support.corpus import cache_config
from tests.unit.data_pipeline.remote.reading import SHARD, everything, finished, remote


def test_a_small_cache_evicts_and_stays_within_its_limit(folder, served, cache):
    local = PackedDataset.open(folder / "set", "train")
    sizes = [record.bytes for record in local.record.shards]
    limit = 3 * max(sizes)
    dataset = remote(f"{served.url}/set", cache, max_bytes=limit)
    assert np.array_equal(everything(dataset), everything(local))
    assert sum(path.stat().st_size for path in Path(cache.dir).iterdir()) <= limit
    kept = {path.name for path in finished(cache)}
    assert kept <= {record.sha256 for record in local.record.shards[-3:]}
    # Open files stay readable after their eviction.
    assert np.array_equal(everything(dataset), everything(local))
    dataset.close()
    assert np.array_equal(everything(dataset), everything(local))


def test_a_run_that_does_not_fit_the_cache_is_refused(served, cache):
    dataset = remote(f"{served.url}/set", cache)
    needed = sum(record.bytes for record in dataset.record.files)
    check_cache_holds([remote(f"{served.url}/set", cache, max_bytes=needed)] * 2)
    with pytest.raises(DataError, match=rf"data.cache.max_bytes={needed - 1:,}: .* have {needed:,} bytes"):
        check_cache_holds([remote(f"{served.url}/set", cache, max_bytes=needed - 1)])


def test_runs_that_evict_each_others_files_warn(served, cache, caplog, monkeypatch):
    needed = sum(record.bytes for record in remote(f"{served.url}/set", cache).record.files)
    datasets = [remote(f"{served.url}/{name}", cache, max_bytes=needed) for name in ("set", "other")]

    def warnings() -> int:
        caplog.clear()
        for dataset in datasets:
            check_cache_holds([dataset])
            everything(dataset)
            dataset.close()
        return len(caplog.records)

    assert warnings() == 0
    assert [warnings() for _ in range(3)] == [2, 0, 0]
    monkeypatch.setattr(cache_waits, "SECONDS_BETWEEN_WARNINGS", 0.0)
    assert warnings() > 2
    assert re.search(
        rf"data.cache.dir={cache.dir}: train-.* was evicted and is fetched again .* "
        rf"than data.cache.max_bytes={needed:,}\. "
        r"Raise it, or give each run its own data.cache.dir",
        caplog.text,
    )


def test_a_shard_larger_than_the_cache_is_refused(served, cache):
    with pytest.raises(DataError, match=r"data.cache.max_bytes=4,000: train-00000.tar alone has [\d,]+ bytes"):
        everything(remote(f"{served.url}/set", cache, max_bytes=4000))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=False).returncode:
        pytest.skip("no right to mount")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # the index of an open dataset is mapped


def test_a_full_disk_names_the_cache_and_leaves_no_partial_file(served, disk):
    dataset = remote(f"{served.url}/set", cache_config(disk))
    with pytest.raises(DataError, match=rf"data.cache.dir={disk}: no space left on the disk\n  hint: free some"):
        everything(dataset)
    assert not list(disk.glob("*.partial"))
    with pytest.raises(DataError, match=r"data.cache.dir=.*bytes must still be fetched, but the disk has room for"):
        check_cache_holds([dataset])


def test_a_read_only_cache_serves_a_run(folder, served, disk, monkeypatch):
    monkeypatch.setattr(reader, "POLL_SECONDS", 0.0)
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    everything(remote(f"{served.url}/set", cache_config(disk)))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    dataset = remote(f"{served.url}/set", cache_config(disk))
    check_cache_holds([dataset])
    for _ in range(2):  # mapped files are looked up again
        assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))


def test_an_unwritable_folder_is_named(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.cache.dir=.*file/cache: cannot be used \(.*\)\n  hint: choose another"):
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


def start_reader(url: str, cache: CacheConfig) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", READ_ALL, url, str(cache.dir)], stdout=subprocess.PIPE)


def test_two_processes_fetch_each_file_once(folder, served, cache):
    slow = lambda handler, content: time.sleep(0.02)  # noqa: E731
    local = PackedDataset.open(folder / "set", "train")
    for record in local.record.files:
        served.lasting[record.file] = slow
    processes = [start_reader(f"{served.url}/set", cache) for _ in range(2)]
    assert [int(process.communicate()[0]) for process in processes] == [everything(local).sum()] * 2
    assert [served.requests[record.file] for record in local.record.files] == [1] * len(local.record.files)
    assert served.requests["manifest.json"] == 2


def test_a_partial_file_of_a_killed_process_is_fetched_again(folder, served, cache):
    served.fault(SHARD, faulty.hangs_in_the_middle)
    sha256 = Manifest.load(folder / "set").splits["train"].shards[1].sha256
    partial = Path(cache.dir) / f"{sha256}.partial"
    process = start_reader(f"{served.url}/set", cache)
    while not (partial.exists() and partial.stat().st_size):  # the server hangs in the middle of the file
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


def test_a_fetch_takes_over_when_another_process_is_killed(folder, served, cache):
    record = Manifest.load(folder / "set").splits["train"].shards[1]
    Path(cache.dir).mkdir()
    other = (Path(cache.dir) / f"{record.sha256}.partial").open("wb")
    fcntl.flock(other, fcntl.LOCK_EX)
    dataset = remote(f"{served.url}/set", cache)
    stop = threading.Event()
    with prefetch_shards(dataset, 3, 0, stop):
        while len(finished(cache)) < len(dataset.record.files) - 1:
            time.sleep(0.01)
        assert not served.requests[record.file]
        other.close()  # as a killed process does
        while len(finished(cache)) < len(dataset.record.files):
            time.sleep(0.01)
    assert served.requests[record.file] == 1


def test_a_partial_file_of_a_killed_process_is_evicted(folder, served, cache):
    Path(cache.dir).mkdir()
    left = Path(cache.dir) / ("0" * 64 + ".partial")
    left.write_bytes(bytes(100_000))
    limit = sum(record.bytes for record in Manifest.load(folder / "set").splits["train"].files)
    everything(remote(f"{served.url}/set", cache, max_bytes=limit))
    assert not left.exists()


def test_a_partial_file_of_a_killed_process_takes_no_room(folder, served, cache):
    records = Manifest.load(folder / "set").splits["train"].files
    Path(cache.dir).mkdir()
    for record in records:
        (Path(cache.dir) / f"{record.sha256}.partial").write_bytes(bytes(record.bytes))
    limit = sum(record.bytes for record in records)
    everything(remote(f"{served.url}/set", cache, max_bytes=limit))
    assert {path.name for path in finished(cache)} == {record.sha256 for record in records}


def test_other_files_in_the_cache_folder_are_ignored(folder, served, cache):
    others = [Path(cache.dir) / name for name in ("text.tar", "text.partial")]
    Path(cache.dir).mkdir()
    for path in others:
        path.write_bytes(bytes(1_000_000))
    limit = sum(record.bytes for record in Manifest.load(folder / "set").splits["train"].files)
    dataset = remote(f"{served.url}/set", cache, max_bytes=limit)
    check_cache_holds([dataset])
    everything(dataset)
    assert len(finished(cache)) == len(dataset.record.files) and all(path.exists() for path in others)


def test_waiting_for_room_is_logged_and_bounded(folder, served, cache, monkeypatch, caplog):
    monkeypatch.setattr(cache_waits, "SECONDS_UNTIL_LOGGED", 0.1)
    monkeypatch.setattr(transfer, "MAX_DELAY_SECONDS", 0.01)
    limit = sum(record.bytes for record in Manifest.load(folder / "set").splits["train"].files)
    dataset = remote(f"{served.url}/set", cache, max_bytes=limit, timeout_seconds=2.0, retries=0)
    with (Path(cache.dir) / ("0" * 64 + ".partial")).open("wb") as other:
        other.truncate(limit)
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            DataError,
            match=rf"max_bytes={limit:,}: no room for .* beside {limit:,} bytes that other processes are fetching",
        ):
            everything(dataset)
    assert caplog.text.count("waiting for those fetches") == 1
    everything(remote(f"{served.url}/set", cache, max_bytes=limit))


@pytest.mark.parametrize("folder", [None, "~/shards"])
def test_without_a_home_folder_the_cache_folder_must_be_set(monkeypatch, folder):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(
        DataError,
        match=rf"data.cache.dir={re.escape(folder or 'null')}: the home folder .*\n  hint: set data.cache.dir",
    ):
        caches.cache_folder(replace(cache_config(""), dir=folder))

"""Checkpoints at a URL: what is there is whole, and whoever is silent there holds a run up for a bounded time."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.remote import vendors
from pretrain.checkpoint import mirror as mirror_module
from pretrain.checkpoint.manifest import MANIFEST, read_manifest
from pretrain.checkpoint.mirror import Mirror
from pretrain.config.errors import ConfigError, RunError
from tests.support import http_server as faulty
from tests.support.checkpoints import checkpoint_of, write_checkpoint
from tests.support.corpus import cache_config
from tests.support.object_stores import SCHEMES, WRITES, Bucket, set_environment


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def made(run: Path, step: int, size: int = 1000) -> Path:
    """A checkpoint of two ranks."""
    tensors = {"weight/x": torch.arange(size, dtype=torch.float32) + step}
    return write_checkpoint(checkpoint_of(run, step), tensors, {"weight/x": [size // 3]}, state={"step": step})


def mirrors(url: str, num_ranks: int = 2, keep_last: int = 2, **changes: object) -> list[Mirror]:
    """Of each rank."""
    return [Mirror(url, keep_last, cache_config("unused", **changes), rank, num_ranks) for rank in range(num_ranks)]


def send(url: str, *folders: Path, **changes: object) -> None:
    ranks = mirrors(url, **changes)
    for folder in folders:
        for rank in ranks:
            rank.send(folder)
    for rank in ranks:
        rank.close()


def fetched(url: str, run: Path, **changes: object) -> list[Path]:
    """All that lies among the checkpoints of a run afterwards."""
    (one,) = mirrors(url, num_ranks=1, **changes)
    one.fetch_newer(run / "checkpoints")
    one.close()
    return sorted((run / "checkpoints").iterdir())


def same(one: Path, other: Path) -> bool:
    names = [path.name for path in sorted(one.iterdir())]
    return names == [path.name for path in sorted(other.iterdir())] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_a_store_keeps_the_last_checkpoints_and_gives_the_newest_back(bucket: Bucket, tmp_path: Path) -> None:
    sent = [made(tmp_path / "run", step) for step in (1, 2, 10)]
    send(f"{bucket.url}/runs/a", *sent)
    send(f"{bucket.url}/runs", made(tmp_path / "other", 3))  # a run of its own, in the folder around it
    assert sorted({name.split("/")[-2] for name in bucket.files.find(f"{bucket.name}/runs/a")}) == [
        "step-00000002",
        "step-00000010",
    ]
    (newest,) = fetched(f"{bucket.url}/runs/a/", tmp_path / "new")
    assert same(newest, sent[-1])
    assert fetched(f"{bucket.url}/runs/a", tmp_path / "run") == sorted(sent)  # nothing that it has not got
    (newest,) = fetched(f"{bucket.url}/runs", tmp_path / "new-other")
    assert newest.name == "step-00000003"


def test_a_large_file_goes_there_in_blocks(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendors, "REQUEST_BYTES", 5 << 20)  # the least that S3 takes
    sent = made(tmp_path / "run", 1, size=10 << 20)
    send(f"{bucket.url}/run", sent)
    (newest,) = fetched(f"{bucket.url}/run", tmp_path / "new")
    assert same(newest, sent)
    assert bucket.served.requests[WRITES] >= 8, "27 MB in two files"


def test_what_is_not_whole_is_passed_over(bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent = [made(tmp_path / "run", step) for step in (1, 2, 3)]
    send(f"{bucket.url}/run", *sent, keep_last=3)
    bucket.put("run/step-00000002/__0_0.distcp", b"cut")
    bucket.files.rm(f"{bucket.name}/run/step-00000003/{MANIFEST}")
    (newest,) = fetched(f"{bucket.url}/run", tmp_path / "new", retries=0)
    assert same(newest, sent[0])
    size = (sent[1] / "__0_0.distcp").stat().st_size
    assert f"step-00000002/__0_0.distcp: cannot be read: has 3 bytes, must have {size:,}" in caplog.text


def test_a_store_that_is_ill_costs_a_copy_and_not_the_run(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = [made(tmp_path / "run", step) for step in (1, 2)]
    bucket.served.lasting[WRITES] = faulty.status(503)
    began = time.monotonic()
    send(f"{bucket.url}/run", sent[0], num_ranks=1, timeout_seconds=0.3, retries=1)
    assert time.monotonic() - began < 15
    (told,) = [record.message for record in caplog.records if "not copied" in record.message]
    assert told.startswith(f"{sent[0]}: not copied to {bucket.url}/run: ") and "tried 2 times; mend it" in told
    assert told.endswith("; training goes on")
    assert [record.exc_info for record in caplog.records if record.name.startswith("pretrain")] == [None]
    bucket.served.lasting.clear()
    bucket.served.fault(WRITES, faulty.closes)
    send(f"{bucket.url}/run", sent[1])
    (newest,) = fetched(f"{bucket.url}/run", tmp_path / "new")
    assert same(newest, sent[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_store_that_says_nothing_is_named_and_left(
    scheme: str, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_environment(monkeypatch, scheme, silent)
    url, impatient = f"{scheme}://bucket/run", {"timeout_seconds": 0.3, "retries": 1}
    began = time.monotonic()
    with pytest.raises(
        RunError, match=rf"checkpoint.mirror: {url}: cannot be listed: no answer in time, tried 2 times"
    ):
        fetched(url, tmp_path / "new", **impatient)
    send(url, made(tmp_path / "run", 1), **impatient)
    assert time.monotonic() - began < 10
    told = [record.message for record in caplog.records if "not copied" in record.message]
    assert len(told) == 2 and all("no answer in time, tried 2 times" in line for line in told)


def test_the_first_rank_waits_for_the_others_as_long_as_their_files_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror_module, "PATIENCE", 1.5)
    folder, there = made(tmp_path / "run", 1), tmp_path / "mirror" / "step-00000001"
    others = sorted(read_manifest(folder)["files"])[1:]
    first = mirrors(str(tmp_path / "mirror"), num_ranks=3)[0]
    first.send(folder)
    for name in others:
        assert not (there / MANIFEST).exists()
        time.sleep(1.0)
        (there / name).write_bytes((folder / name).read_bytes())
    first.close()
    assert same(there, folder)
    caplog.clear()
    send(str(tmp_path / "other"), folder, num_ranks=1)
    alone = mirrors(str(tmp_path / "alone"), num_ranks=3)[0]
    alone.send(folder)
    alone.close()
    assert f"{others[0]}, which another rank sends, did not come" in caplog.text
    assert not (tmp_path / "alone" / "step-00000001" / MANIFEST).exists()


def test_a_url_that_names_no_file_system_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.mirror.*nowhere"):
        mirrors("nowhere://bucket/run")

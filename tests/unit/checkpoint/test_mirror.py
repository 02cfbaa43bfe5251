"""Checkpoints at a URL: copies are whole, and an unresponsive server delays a run for a bounded time."""

import gc
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.remote import call_timeout, fsspec_store
from data_pipeline.remote.fsspec_store import RemotePath
from pretrain.checkpoint import mirror as mirror_module
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.mirror import RANK_TIMEOUT, Mirror
from pretrain.config.errors import ConfigError, RunError
from tests.support import http_server as faulty
from tests.support.checkpoints import change_manifest, checkpoint_of, write_checkpoint
from tests.support.corpus import cache_config
from tests.support.object_stores import SCHEMES, WRITES, Bucket, set_environment

SOON = 30.0
"""Seconds: less than the minute that vendors wait, and more than a busy machine takes."""


def made(run: Path, step: int, size: int = 1000) -> Path:
    """A checkpoint of two ranks."""
    tensors = {"weight/x": torch.arange(size, dtype=torch.float32) + step}
    return write_checkpoint(checkpoint_of(run, step), tensors, {"weight/x": [size // 3]}, step=step)


def mirrors(url: str, num_ranks: int = 2, keep_last: int = 2, **changes: object) -> list[Mirror]:
    """The mirror of each rank."""
    return [Mirror(url, keep_last, cache_config("unused", **changes), rank, num_ranks) for rank in range(num_ranks)]


def send(url: str, *folders: Path, **changes: object) -> None:
    ranks = mirrors(url, **changes)
    for folder in folders:
        for rank in ranks:
            rank.send(folder)
    for rank in ranks:
        rank.close()


def fetched(url: str, run: Path, **changes: object) -> list[Path]:
    """Names in the checkpoints folder of a run after a fetch."""
    (one,) = mirrors(url, num_ranks=1, **changes)
    with closing(one):
        one.begin(run / "checkpoints")
    return sorted((run / "checkpoints").iterdir())


def same(one: Path, other: Path) -> bool:
    names = [path.name for path in sorted(one.iterdir())]
    return names == [path.name for path in sorted(other.iterdir())] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_a_mirror_keeps_the_last_and_returns_the_newest(bucket: Bucket, tmp_path: Path) -> None:
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


def test_a_large_file_is_uploaded_in_blocks(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec_store, "REQUEST_BYTES", 5 << 20)  # the least that S3 takes
    sent = made(tmp_path / "run", 1, size=10 << 20)
    send(f"{bucket.url}/run", sent)
    (newest,) = fetched(f"{bucket.url}/run", tmp_path / "new")
    assert same(newest, sent)
    assert bucket.served.requests[WRITES] >= 8, "27 MB in two files"


def test_fetch_skips_incomplete_checkpoints(bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent = [made(tmp_path / "run", step) for step in (1, 2, 3)]
    send(f"{bucket.url}/run", *sent, keep_last=3)
    bucket.put("run/step-00000002/__0_0.distcp", b"cut")
    bucket.files.rm(f"{bucket.name}/run/step-00000003/{MANIFEST}")
    (newest,) = fetched(f"{bucket.url}/run", tmp_path / "new", retries=0)
    assert same(newest, sent[0])
    size = (sent[1] / "__0_0.distcp").stat().st_size
    assert f"step-00000002/__0_0.distcp is damaged: there are 3 bytes instead of {size}; trying the one" in caplog.text


def test_a_mirror_with_only_damaged_ones_reports_them(bucket: Bucket, tmp_path: Path) -> None:
    send(f"{bucket.url}/run", made(tmp_path / "run", 1))
    bucket.put("run/step-00000001/__0_0.distcp", b"cut")
    (one,) = mirrors(f"{bucket.url}/run", num_ranks=1, retries=0)
    with closing(one):
        (fault,) = one.begin(tmp_path / "new" / "checkpoints")
    assert "step-00000001/__0_0.distcp is damaged: there are 3 bytes" in str(fault)


def test_mirror_copies_from_before_a_restart_stay_unused(bucket: Bucket, tmp_path: Path) -> None:
    send(f"{bucket.url}/run", *(made(tmp_path / "old", step) for step in (8, 9)))
    before = bucket.files.find(f"{bucket.name}/run")
    for restarts in (1, 2):
        run = tmp_path / str(restarts)
        (one,) = mirrors(f"{bucket.url}/run", num_ranks=1, keep_last=1)
        with closing(one):
            one.begin(run / "found")
            one.restart()
            one.restart()  # nothing was saved since
            sent = [made(run, step) for step in (1, 2)]
            for folder in sent:
                one.send(folder)
        assert one.restarts == restarts
        (newest,) = fetched(f"{bucket.url}/run", tmp_path / f"new-{restarts}")
        assert same(newest, sent[-1])
    assert set(before) < set(bucket.files.find(f"{bucket.name}/run"))


def test_damaged_mirror_copies_do_not_count_for_keep_last(bucket: Bucket, tmp_path: Path) -> None:
    sent = [made(tmp_path / "run", step) for step in (1, 2, 3, 4)]
    send(f"{bucket.url}/run", *sent[:2])
    bucket.put("run/step-00000002/__0_0.distcp", b"cut")
    names = lambda: {name.split("/")[-2] for name in bucket.files.find(f"{bucket.name}/run")}  # noqa: E731
    send(f"{bucket.url}/run", sent[2])
    assert names() == {f"step-0000000{step}" for step in (1, 2, 3)}
    send(f"{bucket.url}/run", sent[3])
    assert names() == {f"step-0000000{step}" for step in (3, 4)}


def test_a_failing_mirror_costs_a_copy_and_not_the_run(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = [made(tmp_path / "run", step) for step in (1, 2)]
    bucket.served.lasting[WRITES] = faulty.status(503)
    began = time.monotonic()
    send(f"{bucket.url}/run", sent[0], num_ranks=1, timeout_seconds=0.3, retries=1)
    assert time.monotonic() - began < SOON
    (reported,) = [record.message for record in caplog.records if "not copied" in record.message]
    assert (
        reported.startswith(f"{sent[0]}: not copied to {bucket.url}/run: ")
        and "tried 2 times (hint: repair it" in reported
    )
    assert reported.endswith("; training continues")
    assert [record.exc_info for record in caplog.records if record.name.startswith("pretrain")] == [None]
    bucket.served.lasting.clear()
    bucket.served.fault(WRITES, faulty.closes)
    send(f"{bucket.url}/run", sent[1])
    (newest,) = fetched(f"{bucket.url}/run", tmp_path / "new")
    assert same(newest, sent[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mirror_that_does_not_respond_is_abandoned(
    scheme: str, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_environment(monkeypatch, scheme, silent)
    url, impatient = f"{scheme}://bucket/run", {"timeout_seconds": 0.3, "retries": 1}
    began = time.monotonic()
    with pytest.raises(RunError, match=f"mirror: {url}/probe: cannot be written: no answer in time, tried 2 times"):
        fetched(url, tmp_path / "new", **impatient)
    send(url, made(tmp_path / "run", 1), **impatient)
    assert time.monotonic() - began < SOON
    reported = [record.message for record in caplog.records if "not copied" in record.message]
    assert len(reported) == 2 and all("no answer in time, tried 2 times" in line for line in reported)


def test_rank_0_waits_for_others_while_their_files_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, looks = [0.0], []
    listed = RemotePath.list
    monkeypatch.setattr(mirror_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(RemotePath, "list", lambda place: (looks.append(now[0]), listed(place))[1])
    folder, there = made(tmp_path / "run", 1), tmp_path / "mirror" / "step-00000001"
    first, *others = mirrors(str(tmp_path / "mirror"), num_ranks=3)
    first.send(folder)
    for other in others:
        wait_for(lambda: now[0] in looks)
        now[0] += 0.7 * RANK_TIMEOUT
        wait_for(lambda: now[0] in looks)
        assert not (there / MANIFEST).exists()
        other.send(folder)
        other.close()
    first.close()
    assert all((there / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    first, second, third = mirrors(str(tmp_path / "mirror"), num_ranks=3)
    # Saved again: files of the same names and sizes are there, and its manifest.
    change_manifest(folder, lambda manifest: manifest.update(saved_at="later"))
    for rank in (first, second):
        rank.send(folder)
    for rank in (second, third):
        rank.close()
    seen = len(looks) + 1  # the next look may have started before
    wait_for(lambda: len(looks) > seen + 1)
    now[0] += RANK_TIMEOUT + 1
    first.close()
    assert f"rank 2 did not send its files in {RANK_TIMEOUT / 60:.0f} minutes" in caplog.text
    assert not (there / MANIFEST).exists()


def test_the_end_of_a_run_waits_while_the_mirror_makes_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moves: list[float] = []
    closing_began, sent = threading.Event(), Mirror._send

    def now() -> float:
        closing_began.set()
        return time.monotonic()

    # Nothing moves before somebody waits for the end.
    monkeypatch.setattr(mirror_module, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(Mirror, "_send", lambda mirror, folder: (closing_began.wait(SOON), sent(mirror, folder)))
    cache, of_others = cache_config("unused"), threads("mirror")
    url, folder = str(tmp_path / "mirror"), made(tmp_path / "run", 1)
    first = Mirror(url, 2, cache, 0, 2, still_seconds=1.5, moved=lambda: moves.append(time.monotonic()))
    first.send(folder)
    began = time.monotonic()
    first.close()
    assert 1.5 < time.monotonic() - began < SOON and moves
    assert f"checkpoint.mirror={url}: given up, as nothing moved" in caplog.text
    wait_for(lambda: threads("mirror") <= of_others)
    with closing(Mirror(url, 2, cache, 1, 2)) as second:
        second.send(folder)
    assert not (tmp_path / "mirror" / folder.name / MANIFEST).exists()


def test_only_older_checkpoints_of_this_mirror_are_removed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("run*/step-00000009/manifest.json", b"damaged")
    bucket.put("runs/step-00000001/x", b"of another")
    bucket.put("run*/step-00000000/x", b"never whole")
    bucket.put("run*/else/x", b"something else")
    sent = [made(tmp_path / "run", step) for step in (1, 2)]
    send(f"{bucket.url}/run*", *sent, keep_last=1)
    left = {name.rpartition("/")[0].removeprefix(f"{bucket.name}/") for name in bucket.files.find(bucket.name)}
    assert left == {"run*/else", "run*/step-00000002", "run*/step-00000009", "runs/step-00000001"}
    (newest,) = fetched(f"{bucket.url}/run*", tmp_path / "new")
    assert same(newest, sent[1])


def test_an_abandoned_call_does_no_harm_later(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late, started, of_others = threading.Event(), threading.Event(), threads("file-system")
    monkeypatch.setattr(call_timeout, "_idle", [])
    system = type(bucket.files)
    real = system._open

    def slow_once(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and not started.is_set():
            started.set()
            late.wait(20)
        return real(self, path, mode, **options)

    sent = made(tmp_path / "run", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "_open", slow_once)
        send(f"{bucket.url}/run", sent, num_ranks=1, timeout_seconds=2.0)
        assert started.is_set()
        late.set()
        wait_for_idle(of_others)
    (newest,) = fetched(f"{bucket.url}/run", tmp_path / "new")
    assert same(newest, sent)


def test_an_abandoned_call_does_not_empty_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late, started, of_others = threading.Event(), threading.Event(), threads("file-system")
    monkeypatch.setattr(call_timeout, "_idle", [])

    class Late(LocalFileSystem):
        protocol = "late"

        def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            if mode == "wb" and path.startswith(str(tmp_path / "mirror" / "step")) and not started.is_set():
                started.set()
                late.wait(20)
            return super()._open(path, mode, **options)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.removeprefix("late://"))

    fsspec.register_implementation("late", Late, clobber=True)
    sent = made(tmp_path / "run", 1)
    (tmp_path / "mirror" / "step-00000001").mkdir(parents=True)
    send(f"late://{tmp_path}/mirror", sent, num_ranks=1, timeout_seconds=2.0)
    assert started.is_set()
    late.set()
    wait_for_idle(of_others)
    there = tmp_path / "mirror" / "step-00000001"
    assert all((there / path.name).read_bytes() == path.read_bytes() for path in sent.iterdir())


def threads(name: str) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == name}


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_idle(of_others: set[threading.Thread]) -> None:
    """Until no call that was given up is at work."""
    wait_for(lambda: len(threads("file-system") - of_others) <= len(call_timeout._idle))
    gc.collect()


def test_unreadable_stops_the_start_but_damaged_is_fetched(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = made(tmp_path / "run", 1)
    send(f"{bucket.url}/run", sent)
    bucket.served.lasting["__0_0.distcp"] = faulty.status(503)
    with pytest.raises(RunError, match=r"step-00000001/__0_0.distcp: cannot be read: .*tried 2 times"):
        fetched(f"{bucket.url}/run", tmp_path / "new", retries=1, timeout_seconds=2.0)
    bucket.served.lasting.clear()
    shutil.copytree(tmp_path / "run", tmp_path / "hurt")
    hurt = checkpoint_of(tmp_path / "hurt", 1)
    (hurt / "__1_0.distcp").write_bytes(b"cut")
    newest, aside = fetched(f"{bucket.url}/run", tmp_path / "hurt")
    assert same(newest, sent) and aside.name == "step-00000001.damaged"
    assert f"{hurt} is damaged" in caplog.text


def test_a_full_disk_is_not_reported_as_a_damaged_copy(tmp_path: Path) -> None:
    url = str(tmp_path / "mirror")
    send(url, made(tmp_path / "run", 1), made(tmp_path / "run", 2))
    blocked = checkpoint_of(tmp_path / "new", 2).with_suffix(".partial")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file")
    with pytest.raises(OSError, match="File exists"):
        fetched(url, tmp_path / "new")
    assert list(blocked.parent.iterdir()) == [blocked]


def test_a_pipe_command_cannot_be_a_mirror() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.mirror.*a command cannot be written to"):
        mirrors("pipe:cat {file}")


def test_a_url_that_names_no_file_system_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.mirror.*nowhere"):
        mirrors("nowhere://bucket/run")

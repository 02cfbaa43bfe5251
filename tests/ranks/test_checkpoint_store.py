"""A checkpoint is saved as a whole or not at all, whatever fails on any rank."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import store as store_module
from pretrain.checkpoint.on_disk import newest_whole, read_checkpoint
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.saving import save_steps, store_of
from tests.support.training import start


def test_keep_last_and_keep_every(tmp_path: Path) -> None:
    run_ranks(save_steps, 1, run_config("gpt"), tmp_path, [2, 4, 6, 8, 9, 10, 11], 2, 4)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [f"step-{step:08d}" for step in (4, 8, 10, 11)]


def refuse_to_delete(here: Runtime, config: RunConfig, folder: Path) -> None:
    """A disk that deletes nothing costs room and not the save."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    store_module.remove_folder = refuse
    save_steps(here, config, folder, [1, 2], 1)


def test_an_older_one_that_cannot_be_deleted_fails_no_save(tmp_path: Path) -> None:
    run_ranks(refuse_to_delete, 1, run_config("gpt"), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_leftover_is_replaced_and_a_step_may_be_saved_again(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / "step-00000001.partial"
    leftover.mkdir(parents=True)
    (leftover / "__0_7.distcp").write_bytes(b"half")
    run_ranks(save_steps, 2, run_config("gpt"), tmp_path, [1, 1])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert "__0_7.distcp" not in read_checkpoint(tmp_path / "checkpoints" / "step-00000001").manifest["files"]


def full_disk(folder: Path) -> None:
    """Let this process write no file beyond a few bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def broken_random_file(folder: Path) -> None:
    """Let this process fail after its tensors are written."""
    write = store_module.write_tensors

    def in_the_way(partial: Path, rank: int, *given: Any) -> str:
        (partial / f"random-{rank:05d}.safetensors").mkdir()
        return write(partial, rank, *given)

    store_module.write_tensors = in_the_way


def stale_handle(folder: Path) -> None:
    """Let this process hear from the file system that the folder is gone, whatever it asks."""

    def refuse(*_: Any) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    store_module.write_tensors = shutil.disk_usage = refuse


def save_with_fault(
    here: Runtime, config: RunConfig, folder: Path, rank: int, plant: Callable[[Path], None]
) -> tuple[str, str]:
    """Save step 1, then step 2 with a fault on one rank; returns the kind and text of the error met here."""
    engine = start(here, config)
    store = store_of(engine, folder)
    store.save(engine, RunState(step=1), {})
    if here.rank == rank:
        plant(folder)
    try:
        store.save(engine, RunState(step=2), {})
    except RunError as error:
        return type(error).__name__, str(error)
    return "nothing raised", ""


@pytest.mark.parametrize("plant", [full_disk, broken_random_file, stale_handle])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_error_on_one_rank_is_raised_on_all(tmp_path: Path, rank: int, plant: Callable[[Path], None]) -> None:
    outcomes = run_ranks(save_with_fault, 2, run_config("gpt", zero_stage=2), tmp_path, rank, plant, timeout=60.0)
    for kind, text in outcomes:
        assert kind == "RunRefused"
        assert "could not write a checkpoint in" in text and f"rank {rank}: " in text
    newest = newest_whole(tmp_path / "checkpoints")
    assert newest is not None and newest.step == 1
    assert not (tmp_path / "checkpoints" / "step-00000002").exists()


def save_with_short_listings(here: Runtime, config: RunConfig, folder: Path) -> list[str]:
    """Save twice where the listing lacks a file of rank 1 each time; how each save ended."""
    engine, listed, ends = start(here, config), Path.glob, []
    for hidden in ("digests-00001.json", "tensors-00001.json"):
        Path.glob = lambda path, pattern, hidden=hidden: (  # type: ignore[method-assign, misc, assignment]
            found for found in listed(path, pattern) if found.name != hidden
        )
        try:
            store_of(engine, folder).save(engine, RunState(step=1), {})
            ends.append("saved")
        except RunError as error:
            ends.append(str(error))
    return ends


def test_a_save_with_a_partial_listing_is_not_complete(tmp_path: Path) -> None:
    for of_digests, of_tensors in run_ranks(save_with_short_listings, 2, run_config("gpt"), tmp_path):
        assert "shows 1 files digests-*.json, 2 ranks wrote one each" in of_digests
        assert "shows 1 files tensors-*.json" in of_tensors
    assert not list((tmp_path / "checkpoints").glob("step-*1"))


def restore_random_state(here: Runtime, config: RunConfig, folder: Path) -> list[float]:
    """Two draws before and after a restore."""
    engine = start(here, config)
    store = store_of(engine, folder)
    store.save(engine, RunState(step=1), {})
    before = torch.rand(2)
    newest = store.newest()
    assert newest is not None
    store.restore(newest, engine)
    return [*before.tolist(), *torch.rand(2).tolist()]


def test_each_rank_gets_its_own_random_state_back(tmp_path: Path) -> None:
    draws = run_ranks(restore_random_state, 2, run_config("gpt"), tmp_path)
    for before_and_after in draws:
        assert before_and_after[:2] == before_and_after[2:]
    assert draws[0] != draws[1]

"""A checkpoint that a live run deletes while others read it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import on_disk
from pretrain.checkpoint import store as store_module
from pretrain.checkpoint.manifest import CheckpointDeleted
from pretrain.checkpoint.on_disk import newest_whole, read_checkpoint
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train


def read_while_it_is_deleted(here: Runtime, config: RunConfig, folder: Path, moment: str) -> tuple[int, bool, str]:
    """Step 1 is deleted before or during a load of it, when step 2 is there.

    Returns the step that was loaded, whether the weights are those of it, and what a resume from step 1 says.
    """
    engine = start(here, config)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=2)
    first = store.save(engine, RunState(step=1), {})
    train(here, config, engine, [0])
    second = store.save(engine, RunState(step=2), {})
    wanted = [shard.data.clone() for shard in engine.state_shards(weights_only=True)]
    train(here, config, engine, [1])
    found, load = read_checkpoint(first), store_module.dcp.load

    def delete_and_load(*arguments: Any, **options: Any) -> None:
        if here.rank == 1:
            shutil.rmtree(first, ignore_errors=True)
        load(*arguments, **options)

    if moment == "before":
        store.names()  # on all ranks: rank 1 has read it
        if here.rank == 1:
            shutil.rmtree(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module.dcp, "load", delete_and_load)
        chosen, _ = store.restore_weights(engine, None if here.rank else found, lambda: read_checkpoint(second))
        restored = [shard.data for shard in engine.state_shards(weights_only=True)]
        with pytest.raises(CheckpointDeleted) as deleted:
            store.restore(found, engine)
    same = all(one.equal(other) for one, other in zip(wanted, restored, strict=True))
    return chosen.step, same, str(deleted.value)


@pytest.mark.parametrize("moment", ["before", "during"])
def test_all_ranks_take_the_same_next_checkpoint(tmp_path: Path, moment: str) -> None:
    for step, same, words in run_ranks(read_while_it_is_deleted, 2, run_config("gpt", zero_stage=2), tmp_path, moment):
        assert step == 2 and same
        assert "step-00000001 was deleted while it was read" in words


def save(here: Runtime, config: RunConfig, folder: Path) -> None:
    engine = start(here, config)
    for step in (1, 2):
        CheckpointStore(folder, groups=engine.groups, keep_last=2).save(engine, RunState(step=step), {})


def test_the_search_restarts_if_the_newest_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ranks(save, 1, run_config("gpt"), tmp_path)
    old, new = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (1, 2))
    new.rename(tmp_path / "later")
    read = on_disk.read_manifest

    def read_after_a_save(folder: Path) -> dict[str, Any]:
        if folder == old:
            shutil.rmtree(old)
            (tmp_path / "later").rename(new)
        return read(folder)

    monkeypatch.setattr(on_disk, "read_manifest", read_after_a_save)
    newest = newest_whole(tmp_path / "checkpoints")
    assert newest is not None and newest.folder == new

"""Checkpoints are whole or not there, damaged ones are passed over, and nothing in them is ever executed."""

import errno
import io
import json
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from pretrain.checkpoint import store as store_module
from pretrain.checkpoint.files import JsonIndexReader
from pretrain.checkpoint.manifest import digest_of
from pretrain.checkpoint.store import CheckpointStore, newest_whole, read_checkpoint
from pretrain.checkpoint.tensors import state_dict_of
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import Engine
from pretrain.run.state import RunState
from tests.support.checkpoints import change_manifest
from tests.support.models import run_config
from tests.support.ranks import RanksFailed, run_ranks
from tests.support.training import start


def store_of(engine: Engine, folder: Path, keep_last: int = 3, keep_every: int = 0) -> CheckpointStore:
    return CheckpointStore(folder, groups=engine.groups, keep_last=keep_last, keep_every=keep_every)


def save_steps(here: Runtime, config: RunConfig, folder: Path, steps: list[int], *keep: int) -> None:
    engine = start(here, config)
    store = store_of(engine, folder, *keep)
    for step in steps:
        store.save(engine, RunState(step=step, position=10 * step), {"note": "kept as given"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 1 and 2 by two ranks."""
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(save_steps, 2, run_config("gpt", zero_stage=2), folder, [1, 2])
    return folder


@pytest.fixture
def checkpoints(saved: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")


def test_a_checkpoint_tells_what_it_is(checkpoints: Path) -> None:
    checkpoint = read_checkpoint(checkpoints / "step-00000002")
    assert RunState.from_json(checkpoint.manifest["state"]) == RunState(step=2, position=20)
    assert (
        checkpoint.manifest["layout"] == {"world_size": 2, "tp": 1, "pp": 1}
        and checkpoint.manifest["note"] == "kept as given"
    )
    on_disk = {path.name for path in checkpoint.folder.iterdir()}
    assert on_disk == {"manifest.json", *checkpoint.manifest["files"]}
    assert {"tensors.json", "__0_0.distcp", "__1_0.distcp", "random-00001.safetensors"} <= on_disk


def truncate(folder: Path) -> str:
    path = folder / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-100])
    return "__1_0.distcp has "


def flip_a_bit(folder: Path) -> str:
    path = folder / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return "__0_0.distcp is damaged"


def lose_a_file(folder: Path) -> str:
    (folder / "random-00001.safetensors").unlink()
    return "random-00001.safetensors is missing"


def lose_the_index(folder: Path) -> str:
    (folder / "tensors.json").unlink()
    return "tensors.json is missing"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "step-00000002 is no checkpoint: it has no manifest.json"


def cut_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:40])
    return "manifest.json is damaged"


def empty_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_bytes(b"[]")
    return "manifest.json is damaged"


def come_from_the_future(folder: Path) -> str:
    change_manifest(folder, lambda manifest: manifest.update(format_version=99))
    return "step-00000002 has format version 99, this program reads versions up to 2"


def edit_the_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"position": 20', b'"position": 28'))
    return "manifest.json is damaged: its SHA-256 differs from the one in it"


def rename_another(folder: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)
    return "step-00000002 holds step 1"


def copy_beside(folder: Path) -> str:
    shutil.copytree(folder, folder.with_name("step-00000002 (copy)"))
    return truncate(folder)


def index_anew(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a tensor that both ranks have a part of, in an index whose digest is right."""
    path = folder / "tensors.json"
    index = json.loads(path.read_bytes())
    change(next(tensor for tensor in index.values() if len({chunk["file"] for chunk in tensor["chunks"]}) > 1))
    path.write_text(json.dumps(index))
    change_manifest(folder, lambda manifest: manifest["files"].update({"tensors.json": digest_of(path)}))


def leave_out_a_rank(folder: Path) -> str:
    index_anew(folder, lambda tensor: tensor["chunks"].pop())
    return "elements are in no chunk"


def lead_elsewhere(folder: Path) -> str:
    index_anew(folder, lambda tensor: tensor["chunks"][0].update(file="../step-00000001/__0_0.distcp"))
    return "lies in ../step-00000001/__0_0.distcp, which the manifest does not name"


DAMAGES = [
    leave_out_a_rank,
    lead_elsewhere,
    truncate,
    flip_a_bit,
    lose_a_file,
    lose_the_index,
    lose_the_manifest,
    cut_the_manifest,
    empty_the_manifest,
    come_from_the_future,
    edit_the_manifest,
    rename_another,
    copy_beside,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], str], checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = damage(checkpoints / "step-00000002")
    newest = newest_whole(checkpoints)
    assert newest is not None and newest.step == 1
    assert expected in caplog.text and "trying the one before" in caplog.text


def step_of_newest(here: Runtime, config: RunConfig, folder: Path) -> int:
    newest = store_of(start(here, config), folder).newest()
    assert newest is not None
    return newest.step


@pytest.mark.parametrize("damage", [leave_out_a_rank, edit_the_manifest, flip_a_bit])
def test_no_run_goes_on_from_a_damaged_checkpoint(damage: Callable[[Path], str], checkpoints: Path) -> None:
    damage(checkpoints / "step-00000002")
    assert run_ranks(step_of_newest, 2, run_config("gpt", zero_stage=2), checkpoints.parent) == [1, 1]


def test_without_any_whole_checkpoint_there_is_none(checkpoints: Path) -> None:
    for folder in checkpoints.iterdir():
        truncate(folder)
    assert newest_whole(checkpoints) is None
    assert newest_whole(checkpoints / "nowhere") is None


@pytest.mark.parametrize("suffix", [".partial", ".deleting"])
def test_unfinished_folders_are_never_taken(checkpoints: Path, suffix: str) -> None:
    (checkpoints / "step-00000002").rename(checkpoints / f"step-00000002{suffix}")
    newest = newest_whole(checkpoints)
    assert newest is not None and newest.step == 1


def test_the_last_ones_and_every_so_many_steps_are_kept(tmp_path: Path) -> None:
    run_ranks(save_steps, 1, run_config("gpt"), tmp_path, [2, 4, 6, 8, 9, 10, 11], 2, 4)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [f"step-{step:08d}" for step in (4, 8, 10, 11)]


def resume_and_save(here: Runtime, config: RunConfig, folder: Path, step: int) -> int:
    """Save one step after a resume, one checkpoint being kept; returns the step that was resumed from."""
    engine = start(here, config)
    store = store_of(engine, folder, 1)
    newest = store.newest()
    assert newest is not None
    store.save(engine, RunState(step=step), {})
    return newest.step


def test_what_was_just_saved_stays_and_damaged_ones_count_for_nothing(checkpoints: Path) -> None:
    """Of steps 1 and 2, the later one is damaged; the next save is of a step below it."""
    shutil.move(checkpoints / "step-00000002", checkpoints / "step-00000009")
    change_manifest(checkpoints / "step-00000009", lambda manifest: manifest["state"].update(step=9))
    flip_a_bit(checkpoints / "step-00000009")
    assert run_ranks(resume_and_save, 1, run_config("gpt"), checkpoints.parent, 5) == [1]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000005", "step-00000009"]


def test_links_are_removed_and_what_they_lead_to_stays(checkpoints: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for step in (1, 2):
        folder = checkpoints / f"step-0000000{step}"
        shutil.move(folder, elsewhere / folder.name)
        folder.symlink_to(elsewhere / folder.name)
    (checkpoints / "step-00000003").symlink_to(tmp_path / "nowhere")
    (checkpoints / "step-00000003.partial").symlink_to(elsewhere)
    assert run_ranks(resume_and_save, 1, run_config("gpt"), checkpoints.parent, 3) == [2]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000003"]
    assert not (checkpoints / "step-00000003").is_symlink()
    assert all(read_checkpoint(elsewhere / f"step-0000000{step}").step == step for step in (1, 2))


def refuse_to_delete(here: Runtime, config: RunConfig, folder: Path) -> None:
    """A disk that deletes nothing costs room and not the save."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    store_module.remove_folder = refuse
    save_steps(here, config, folder, [1, 2], 1)


def test_a_save_does_not_fail_because_an_older_one_cannot_be_deleted(tmp_path: Path) -> None:
    run_ranks(refuse_to_delete, 1, run_config("gpt"), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_leftover_is_replaced_and_a_step_may_be_saved_again(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / "step-00000001.partial"
    leftover.mkdir(parents=True)
    (leftover / "__0_7.distcp").write_bytes(b"half")
    run_ranks(save_steps, 2, run_config("gpt"), tmp_path, [1, 1])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert "__0_7.distcp" not in read_checkpoint(tmp_path / "checkpoints" / "step-00000001").manifest["files"]


# Nothing is executed


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _make, (str(self.marker),)


def _make(marker: str) -> None:
    Path(marker).mkdir()


def hostile_bytes(kind: str, marker: Path) -> bytes:
    if kind == "pickle":
        return pickle.dumps(Hostile(marker))
    buffer = io.BytesIO()
    torch.save(Hostile(marker), buffer)
    return buffer.getvalue()


def read_without_checks(here: Runtime, config: RunConfig, folder: Path) -> None:
    """As `restore` does, once the digests are checked."""
    engine = start(here, config)
    dcp.load(state_dict_of(engine.state_shards()), storage_reader=JsonIndexReader(folder))


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_a_pickle_in_place_of_a_chunk_is_refused_unexecuted(checkpoints: Path, tmp_path: Path, kind: str) -> None:
    folder, marker = checkpoints / "step-00000002", tmp_path / "executed"
    content = hostile_bytes(kind, marker)
    pickle.loads(pickle.dumps(Hostile(tmp_path / "proof")))
    assert (tmp_path / "proof").exists(), "the hostile object must work for the test to mean anything"
    # Each chunk of rank 0 now begins at the hostile bytes.
    (folder / "__0_0.distcp").write_bytes(content)
    index = json.loads((folder / "tensors.json").read_bytes())
    for tensor in index.values():
        for chunk in tensor["chunks"]:
            if chunk["file"] == "__0_0.distcp":
                chunk.update(begin=0, bytes=len(content))
    (folder / "tensors.json").write_text(json.dumps(index))
    with pytest.raises(RanksFailed, match=r"(?s)weights_only|Weights only|UnpicklingError"):
        run_ranks(read_without_checks, 1, run_config("gpt"), folder)
    assert not marker.exists()


def test_a_pickle_in_place_of_the_index_is_refused_unexecuted(checkpoints: Path, tmp_path: Path) -> None:
    folder, marker = checkpoints / "step-00000002", tmp_path / "executed"
    (folder / "tensors.json").write_bytes(hostile_bytes("pickle", marker))
    with pytest.raises(RanksFailed, match=r"JSONDecodeError|UnicodeDecodeError"):
        run_ranks(read_without_checks, 1, run_config("gpt"), folder)
    assert not marker.exists()


def test_a_pickled_index_beside_ours_is_not_looked_at(checkpoints: Path, tmp_path: Path) -> None:
    folder, marker = checkpoints / "step-00000002", tmp_path / "executed"
    (folder / ".metadata").write_bytes(hostile_bytes("pickle", marker))
    run_ranks(read_without_checks, 1, run_config("gpt"), folder)
    assert not marker.exists()


# Disk errors


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
def test_a_disk_error_on_one_rank_is_told_on_all_and_leaves_no_checkpoint(
    tmp_path: Path, rank: int, plant: Callable[[Path], None]
) -> None:
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


def test_a_save_whose_folder_is_listed_in_part_is_not_complete(tmp_path: Path) -> None:
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

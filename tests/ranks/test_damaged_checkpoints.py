"""Damaged checkpoints are skipped, and nothing in a checkpoint is ever executed."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from pretrain.checkpoint.files import JsonIndexReader
from pretrain.checkpoint.manifest import digest_of
from pretrain.checkpoint.on_disk import newest_whole, read_checkpoint
from pretrain.checkpoint.tensors import state_dict_of
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.support.checkpoints import change_manifest
from tests.support.models import run_config
from tests.support.ranks import RanksFailed, run_ranks
from tests.support.saving import save_steps, store_of
from tests.support.training import start


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


def test_a_checkpoint_has_its_manifest_and_files(checkpoints: Path) -> None:
    checkpoint = read_checkpoint(checkpoints / "step-00000002")
    assert RunState.from_json(checkpoint.manifest["state"]) == RunState(step=2, position=20)
    layout = {"world_size": 2, "tp": 1, "pp": 1, "cp": 1, "ep": 1, "etp": None}
    assert checkpoint.manifest["layout"] == layout and checkpoint.manifest["note"] == "kept as given"
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
    return "step-00000002 is not a checkpoint: it has no manifest.json"


def cut_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:40])
    return "manifest.json is damaged"


def empty_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_bytes(b"[]")
    return "manifest.json is damaged"


def come_from_the_future(folder: Path) -> str:
    change_manifest(folder, lambda manifest: manifest.update(format_version=99))
    return "step-00000002 has format version 99, but this program reads versions up to 2"


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
    return "is in ../step-00000001/__0_0.distcp, which the manifest does not name"


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
def test_a_damaged_checkpoint_is_skipped_with_its_reason(
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
def test_no_run_resumes_from_a_damaged_checkpoint(damage: Callable[[Path], str], checkpoints: Path) -> None:
    damage(checkpoints / "step-00000002")
    assert run_ranks(step_of_newest, 2, run_config("gpt", zero_stage=2), checkpoints.parent) == [1, 1]


def test_without_a_whole_checkpoint_none_is_found(checkpoints: Path) -> None:
    for folder in checkpoints.iterdir():
        truncate(folder)
    assert newest_whole(checkpoints) is None
    assert newest_whole(checkpoints / "nowhere") is None


@pytest.mark.parametrize("suffix", [".partial", ".deleting"])
def test_unfinished_folders_are_never_taken(checkpoints: Path, suffix: str) -> None:
    (checkpoints / "step-00000002").rename(checkpoints / f"step-00000002{suffix}")
    newest = newest_whole(checkpoints)
    assert newest is not None and newest.step == 1


def resume_and_save(here: Runtime, config: RunConfig, folder: Path, step: int) -> int:
    """Save one step after a resume, one checkpoint being kept; returns the step that was resumed from."""
    engine = start(here, config)
    store = store_of(engine, folder, 1)
    newest = store.newest()
    assert newest is not None
    store.save(engine, RunState(step=step), {})
    return newest.step


def test_the_new_save_stays_and_damaged_ones_do_not_count(checkpoints: Path) -> None:
    """The later checkpoint is damaged; the next save is of a step below it."""
    shutil.move(checkpoints / "step-00000002", checkpoints / "step-00000009")
    change_manifest(checkpoints / "step-00000009", lambda manifest: manifest["state"].update(step=9))
    flip_a_bit(checkpoints / "step-00000009")
    assert run_ranks(resume_and_save, 1, run_config("gpt"), checkpoints.parent, 5) == [1]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000005", "step-00000009"]


def test_symbolic_links_are_removed_and_their_targets_stay(checkpoints: Path, tmp_path: Path) -> None:
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


def test_a_pickled_index_is_never_read(checkpoints: Path, tmp_path: Path) -> None:
    folder, marker = checkpoints / "step-00000002", tmp_path / "executed"
    (folder / ".metadata").write_bytes(hostile_bytes("pickle", marker))
    run_ranks(read_without_checks, 1, run_config("gpt"), folder)
    assert not marker.exists()

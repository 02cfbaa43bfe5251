"""A run that had checkpoints begins again at step 0 only if it is asked to, and then nothing of it is deleted."""

import shutil
from pathlib import Path

import pytest

from pretrain.checkpoint.inventory import find_all
from pretrain.checkpoint.resume_point import restarts
from pretrain.checkpoint.save_log import SAVES_FILE, last_save, record_restart, record_save
from pretrain.config.errors import RunError, RunRefused
from pretrain.run.folder import run_id
from pretrain.tracking.metrics_file import METRICS_FILE
from tests.support.checkpoints import checkpoint_of, flip_a_bit, make_run


def begins(run: Path, *, allowed: bool = False) -> bool:
    """As `train` does when no checkpoint can be used."""
    folder = run / "checkpoints"
    found = find_all(folder, digests=True) if folder.exists() else []
    return restarts(run, folder, [RunError(fault) for each in found for fault in each.faults], allowed=allowed)


def test_a_run_that_never_saved_starts_at_step_0(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"kind": "train", "step": 3, "time": 0}\n')
    assert not begins(tmp_path)


def test_damaged_checkpoints_are_named_and_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 4, 8)
    for step in (4, 8):
        flip_a_bit(checkpoint_of(run, step) / "__0_0.distcp")
    with pytest.raises(
        RunError, match=r"(?s)step-00000004/__0_0.* is damaged.*step-00000008.*run.restart=true"
    ) as reported:
        begins(run)
    assert "choose another run.name" in str(reported.value)
    before, name = sorted(path.read_bytes() for path in run.rglob("*.distcp")), run_id(run)
    assert begins(run, allowed=True)
    assert sorted(path.read_bytes() for path in run.rglob("*.distcp")) == before
    assert {path.name for path in (run / "checkpoints").iterdir()} == {f"step-0000000{n}.damaged" for n in (4, 8)}
    assert run_id(run) != name, "checkpoints on the nodes' disks under the old id are not taken"
    assert not begins(run), "there is nothing to lose now"


def test_a_second_restart_keeps_what_the_first_one_set_aside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 4)
    for _ in range(3):
        flip_a_bit(checkpoint_of(run, 4) / "__0_0.distcp")
        assert begins(run, allowed=True)
        make_run(run, 4)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step-00000004", *(f"step-00000004.damaged{more}" for more in ("", "-2", "-3"))}


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/step-00000008"])
def test_missing_saves_are_noticed(tmp_path: Path, gone: str) -> None:
    run = make_run(tmp_path / "run", 8)
    record_save(run, 4, checkpoint_of(run, 4))
    record_save(run, 8, checkpoint_of(run, 8))
    run = run.rename(tmp_path / "moved")
    shutil.rmtree(run / gone)
    with pytest.raises(RunError, match=r"step 8 was saved in \S+/moved/\S+-00000008 at .* is not there") as reported:
        begins(run)
    assert (f"{run}/checkpoints is missing" in str(reported.value)) == (gone == "checkpoints")
    assert begins(run, allowed=True) and not begins(run)


def test_an_unreadable_disk_is_not_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(RunRefused, match="Input/output error"):
        restarts(tmp_path, tmp_path / "checkpoints", [RunRefused("x: Input/output error")], allowed=False)


def test_a_symbolic_link_to_the_checkpoints_folder_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "disk", 4)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(run / "checkpoints")
    flip_a_bit(checkpoint_of(run, 4) / "__0_0.distcp")
    assert begins(tmp_path / "run", allowed=True)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004.damaged"]


def test_a_run_saved_only_on_nodes_restarts_on_other_nodes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    record_save(tmp_path / "run", 4, tmp_path / "disk" / "step-00000004")
    assert not begins(tmp_path / "run")
    assert f"step 4 was saved in {tmp_path}/disk/step-00000004 at" in caplog.text
    record_save(tmp_path / "run", 8, checkpoint_of(tmp_path / "run", 8))
    record_save(tmp_path / "run", 12, tmp_path / "disk" / "step-00000012")
    with pytest.raises(RunError, match="step 8 was saved"):
        begins(tmp_path / "run")


def test_the_last_save_is_that_after_the_last_restart(tmp_path: Path) -> None:
    def last() -> tuple[int, Path] | None:
        found = last_save(tmp_path)
        return found and (found.step, found.folder)

    assert last() is None
    record_save(tmp_path, 4, tmp_path / "a")
    with (tmp_path / SAVES_FILE).open("a") as file:
        file.write('{"step": 8, "fol')  # torn by a crash
    assert last() == (4, tmp_path / "a")
    record_restart(tmp_path)
    assert last() is None
    record_save(tmp_path, 2, tmp_path / "b")
    assert last() == (2, tmp_path / "b")


def test_a_save_that_cannot_be_recorded_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_save(tmp_path / "nowhere", 4, tmp_path)
    assert "the save of step 4 is not recorded: No such file" in caplog.text

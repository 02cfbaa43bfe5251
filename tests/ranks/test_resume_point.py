"""The resume point of a run, among all places that may have a checkpoint; searched on all ranks."""

from dataclasses import replace
from pathlib import Path

from pretrain.checkpoint.resume_point import ResumePoint, find_resume_point
from pretrain.checkpoint.save_log import record_save
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.support.checkpoints import flip_a_bit
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start


def damage_what_is_on_the_node(here: Runtime, config: RunConfig, run: Path) -> tuple[int, str, bool, bool]:
    """Save on the node alone and damage that; the step found before, the refusal, whether a restart is another run on
    the node, and whether a node without checkpoints begins without a question."""
    engine = start(here, config)

    def begin(restart: bool = False) -> ResumePoint:
        asked = replace(config, run=replace(config.run, restart=restart))
        return find_resume_point(asked, run, engine, engine.groups, here, lambda: None)

    on_node = begin().levels[1].store
    folder = on_node.save(engine, RunState(step=3), {})
    if here.is_main:
        record_save(run, 3, folder)
    again = begin()
    assert again.found is not None
    if here.is_main:
        flip_a_bit(folder / "__0_0.distcp")
    refusal = "nothing"
    try:
        begin()
    except RunError as error:
        refusal = str(error)
    restarted = begin(restart=True)
    moved = restarted.restarted and restarted.found is None and restarted.levels[1].store.folder != on_node.folder
    if here.is_main:
        record_save(run, 3, folder)
    other_node = begin()
    return again.found[1].step, refusal, moved, other_node.found is None and not other_node.restarted


def test_a_damaged_checkpoint_on_a_node_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = run_config("gpt", *batches(2), f"checkpoint.local.path={tmp_path}/node")
    for step, refusal, moved, begins in run_ranks(damage_what_is_on_the_node, 2, config, tmp_path / "run"):
        assert step == 3 and moved and begins
        assert "__0_0.distcp is damaged" in refusal and "run.restart=true" in refusal


def begin_with_a_damaged_mirror(here: Runtime, config: RunConfig, old: Path, new: Path) -> str:
    engine = start(here, config)
    saved = find_resume_point(config, old, engine, engine.groups, here, lambda: None)
    assert saved.mirror is not None
    saved.mirror.send(saved.levels[0].store.save(engine, RunState(step=3), {}))
    saved.mirror.close()
    flip_a_bit(Path(config.checkpoint.mirror.removeprefix("file://")) / "step-00000003" / "__0_0.distcp")
    try:
        find_resume_point(config, new, engine, engine.groups, here, lambda: None)
    except RunError as error:
        return str(error)
    return "nothing"


def lose_here_and_then_at_the_mirror(here: Runtime, config: RunConfig, run: Path, new: Path) -> tuple[int, bool, int]:
    """Damage the one of step 100 here, then at the mirror too, begin again and save step 20; the step found after the
    first damage, whether the run began again, and the step that another folder finds at the mirror at last."""
    engine, there = start(here, config), Path(config.checkpoint.mirror.removeprefix("file://")) / "step-00000100"

    def begin(folder: Path = run, restart: bool = False) -> ResumePoint:
        asked = replace(config, run=replace(config.run, restart=restart))
        return find_resume_point(asked, folder, engine, engine.groups, here, lambda: None)

    def save(beginning: ResumePoint, step: int) -> Path:
        folder = beginning.levels[0].store.save(engine, RunState(step=step), {})
        assert beginning.mirror is not None
        beginning.mirror.send(folder)
        beginning.mirror.close()
        return folder

    folder = save(begin(), 100)
    if here.is_main:
        flip_a_bit(folder / "__0_0.distcp")
    fetched = begin()
    assert fetched.found is not None
    if here.is_main:
        flip_a_bit(folder / "__0_0.distcp")
        flip_a_bit(there / "__0_0.distcp")
    restarted = begin(restart=True)
    save(restarted, 20)
    last = begin(new)
    assert last.found is not None
    return fetched.found[1].step, restarted.restarted, last.found[1].step


def test_a_mirror_copy_replaces_a_damaged_one_until_a_restart(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/mirror"
    config = run_config("gpt", *batches(2), f"checkpoint.mirror={url}", "checkpoint.keep_last=1")
    found = run_ranks(lose_here_and_then_at_the_mirror, 2, config, tmp_path / "run", tmp_path / "new")
    assert found == [(100, True, 20)] * 2
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"step-00000100.damaged", "step-00000100.damaged-2", "step-00000020"}
    assert (tmp_path / "mirror" / "step-00000100" / "manifest.json").exists(), "a restart deletes nothing"


def test_a_mirror_with_only_damaged_ones_is_an_error(tmp_path: Path) -> None:
    config = run_config("gpt", *batches(1), f"checkpoint.mirror=file://{tmp_path}/mirror")
    (refusal,) = run_ranks(begin_with_a_damaged_mirror, 1, config, tmp_path / "old", tmp_path / "new")
    assert "__0_0.distcp is damaged" in refusal and "run.restart=true" in refusal

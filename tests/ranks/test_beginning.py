"""Where a run begins, of all the places that a checkpoint may lie in; asked on all ranks together."""

import shutil
from dataclasses import replace
from pathlib import Path

from pretrain.checkpoint.beginning import find_beginning
from pretrain.checkpoint.saves import record_save
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.layout.runtime import Runtime
from pretrain.run_state import RunState
from tests.support.checkpoints import flip_a_bit
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start


def lose_what_is_on_the_node(here: Runtime, config: RunConfig, run: Path) -> tuple[int, str, bool]:
    """Save on the node alone and lose that; the step found before, the refusal, and whether a restart is another run
    on the node."""
    engine = start(here, config)

    def begin(restart: bool = False) -> object:
        asked = replace(config, run=replace(config.run, restart=restart))
        return find_beginning(asked, run, engine, engine.groups, here, lambda: None)

    first = begin()
    assert first.found is None and not first.restarted
    on_node = first.levels[1].store
    folder = on_node.save(engine, RunState(step=3), {})
    if here.is_main:
        record_save(run, 3, folder)
    again = begin()
    assert again.found is not None
    if here.is_main:
        shutil.rmtree(on_node.folder)
    refusal = "nothing"
    try:
        begin()
    except RunError as error:
        refusal = str(error)
    restarted = begin(restart=True)
    moved = restarted.restarted and restarted.found is None and restarted.levels[1].store.folder != on_node.folder
    assert not begin().restarted
    return again.found[1].step, refusal, moved


def test_a_lost_disk_of_a_node_is_missed_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = run_config("gpt", *batches(2), f"checkpoint.local.path={tmp_path}/node")
    for step, refusal, moved in run_ranks(lose_what_is_on_the_node, 2, config, tmp_path / "run"):
        assert step == 3 and moved
        assert f"step 3 was saved in {tmp_path}/node/" in refusal and "run.restart=true" in refusal


def begin_with_a_damaged_mirror(here: Runtime, config: RunConfig, old: Path, new: Path) -> str:
    engine = start(here, config)
    saved = find_beginning(config, old, engine, engine.groups, here, lambda: None)
    assert saved.mirror is not None
    saved.mirror.send(saved.levels[0].store.save(engine, RunState(step=3), {}))
    saved.mirror.close()
    flip_a_bit(Path(config.checkpoint.mirror.removeprefix("file://")) / "step-00000003" / "__0_0.distcp")
    try:
        find_beginning(config, new, engine, engine.groups, here, lambda: None)
    except RunError as error:
        return str(error)
    return "nothing"


def test_a_mirror_that_has_damaged_ones_alone_is_not_passed_over(tmp_path: Path) -> None:
    config = run_config("gpt", *batches(1), f"checkpoint.mirror=file://{tmp_path}/mirror")
    (refusal,) = run_ranks(begin_with_a_damaged_mirror, 1, config, tmp_path / "old", tmp_path / "new")
    assert "__0_0.distcp is damaged" in refusal and "run.restart=true" in refusal

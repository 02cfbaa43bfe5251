"""Training continues while a checkpoint is written, and neither the checkpoint nor the run shows it."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.checkpoint import files
from pretrain.checkpoint import store as store_module
from pretrain.checkpoint.collective import all_gather_results
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.on_disk import newest_whole, read_checkpoint, refuse_damage
from pretrain.checkpoint.saver import Level, Saver
from pretrain.checkpoint.search import newest_of
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.errors import RunError
from pretrain.config.run import LocalCheckpointConfig, RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import Engine
from pretrain.run.state import RunState
from tests.support.corpus import cache_config
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train, whole_state

EVERY_STEP = LocalCheckpointConfig(path=None, every_steps=1, every_minutes=0, keep_last=9)
NEVER = LocalCheckpointConfig(path=None, every_steps=0, every_minutes=0, keep_last=9)


def saver_of(engine: Engine, *levels: Level, **values: Any) -> Saver:
    given = {"describe": lambda state: {}, "in_background": True, "group": engine.groups.saving, **values}
    return Saver(engine, list(levels), **given)


def shared_level(engine: Engine, folder: Path, interval: LocalCheckpointConfig = EVERY_STEP) -> Level:
    return Level(CheckpointStore(folder, groups=engine.groups, keep_last=9), interval)


def node_level(engine: Engine, folder: Path, interval: LocalCheckpointConfig = EVERY_STEP) -> Level:
    """Every rank is alone on its node."""
    own = folder / f"node-{engine.groups.world.rank()}"
    return Level(CheckpointStore(own, groups=engine.groups, keep_last=9, node=(0, 1)), interval)


def write_slowly(seconds: float) -> None:
    """Each tensor is read late: as on a slow disk, training is far ahead of the writer by then."""
    write = store_module.write_tensors

    def slow(folder: Path, rank: int, chunks: Any, read: Callable[[], None]) -> str:
        def late() -> Any:
            for chunk in chunks:
                time.sleep(seconds)
                yield chunk

        return write(folder, rank, late(), read)

    store_module.write_tensors = slow


def train_beside_slow_saves(here: Runtime, config: RunConfig, folder: Path) -> list[dict[str, np.ndarray]]:
    """Three steps, each saved by a writer that is slower than training; the states that there were."""
    write_slowly(0.005)
    engine = start(here, config)
    saver = saver_of(engine, shared_level(engine, folder))
    states = []
    for step in (1, 2, 3):
        train(here, config, engine, [step])
        states.append(whole_state(engine))
        saver.after_step(RunState(step=step), 0, last=False)
    saver.close()
    return states


def read_all(here: Runtime, config: RunConfig, folder: Path) -> list[dict[str, np.ndarray]]:
    engine = start(here, config)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=9)
    states = []
    for name in reversed(store.names()):
        checkpoint = store.checked(name)
        store.restore(checkpoint, engine)
        states.append(whole_state(engine))
    return states


def same(ones: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> bool:
    return len(ones) == len(others) and all(
        one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        for one, other in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize(
    ("ranks", "values"),
    [
        (1, {"zero_stage": 0}),
        (2, {"zero_stage": 0, "precision": "bf16"}),
        (2, {"zero_stage": 1, "precision": "fp16"}),
        (2, {"zero_stage": 3, "precision": "bf16"}),
        (4, {"zero_stage": 1, "tp": 2, "pp": 2}),
    ],
)
def test_a_slow_save_holds_the_step_it_started_at(tmp_path: Path, ranks: int, values: dict[str, Any]) -> None:
    layout = values.get("tp", 1) * values.get("pp", 1)
    config = run_config("gpt", *batches(ranks // layout), **values)
    states = run_ranks(train_beside_slow_saves, ranks, config, tmp_path)[0]
    assert not same(states[:1], states[1:2])
    assert same(run_ranks(read_all, 1, run_config("gpt"), tmp_path)[0], states)


def ask_again_to_stop(here: Runtime, config: RunConfig, folder: Path) -> tuple[int, list[str]]:
    """How often tensors were written, and the checkpoints that there are when the last save was asked for."""
    write_slowly(0.005)
    slow, calls = store_module.write_tensors, 0

    def counted(*given: Any) -> str:
        nonlocal calls
        calls += 1
        return slow(*given)

    store_module.write_tensors = counted
    engine = start(here, config)
    level = shared_level(engine, folder)
    saver = saver_of(engine, level)
    train(here, config, engine, [1])
    saver.after_step(RunState(step=1), 0, last=False)
    saver.after_step(RunState(step=1), 0, last=True)
    return calls, level.store.names()


def test_a_stop_waits_for_a_running_save_of_its_step(tmp_path: Path) -> None:
    assert run_ranks(ask_again_to_stop, 2, run_config("gpt", *batches(2)), tmp_path) == [(1, ["step-00000001"])] * 2


def fail_then_mend(here: Runtime, config: RunConfig, folder: Path) -> list[str]:
    """The second of three saves fails on one rank; the messages of rank 0."""
    messages: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    engine = start(here, config)
    level = shared_level(engine, folder)
    saver = saver_of(engine, level)
    write = store_module.write_tensors

    def broken(folder: Path, *given: Any) -> str:
        raise OSError(5, "Input/output error")

    for step in (1, 2, 3):
        train(here, config, engine, [step])
        store_module.write_tensors = broken if (step, here.rank) == (2, 1) else write
        saver.after_step(RunState(step=step), 0, last=False)
        saver.wait()
        assert level.due_at < time.monotonic() + 61 if step == 2 else level.due_at == float("inf")
    store_module.write_tensors = broken
    with pytest.raises(
        RunError, match="earlier checkpoints are untouched\n  hint: make room or repair the disk, then run the sam"
    ):
        saver.after_step(RunState(step=4), 0, last=True)
    return messages


def test_a_failed_save_does_not_stop_training_except_the_last(tmp_path: Path) -> None:
    messages, of_others = run_ranks(fail_then_mend, 2, run_config("gpt", *batches(2), zero_stage=1), tmp_path)
    assert len(messages) == 1 and not of_others
    assert messages[0].startswith(f"NOT saved: could not write a checkpoint in {tmp_path}/checkpoints: rank 1: Input/o")
    assert "training continues and tries again at the next save that is due, in 60 s at the latest" in messages[0]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000003", "step-00000004.partial"]


def test_each_level_has_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    often = LocalCheckpointConfig(path=None, every_steps=0, every_minutes=1, keep_last=1)
    level = Level(None, often)  # type: ignore[arg-type]
    never = Level(None, NEVER)  # type: ignore[arg-type]
    for seconds, due in ((59, False), (60, True)):
        now[0] = 1000.0 + seconds
        assert (level.is_due_now(), never.is_due_now()) == (due, False)
    level.started(1)
    assert not level.is_due_now()
    never.failed()
    now[0] += 60
    assert never.is_due_now()


# Which rank writes which part


def save_once(here: Runtime, config: RunConfig, folder: Path) -> int:
    engine = start(here, config)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=9)
    store.save(engine, RunState(step=1), {})
    return store.snapshot(engine, RunState(step=1), {}).num_bytes


@pytest.mark.parametrize(("ranks", "values"), [(3, {"zero_stage": 0}), (4, {"zero_stage": 1, "tp": 2, "pp": 2})])
def test_everything_is_written_once_and_copies_are_shared(tmp_path: Path, ranks: int, values: dict[str, Any]) -> None:
    config = run_config("gpt", *batches(3 if ranks == 3 else 1), **values)
    num_bytes = run_ranks(save_once, ranks, config, tmp_path)
    index = json.loads((tmp_path / "checkpoints" / "step-00000001" / "tensors.json").read_bytes())
    for name, tensor in index.items():
        covered = np.zeros(tensor["shape"], dtype=int)
        for chunk in tensor["chunks"]:
            pairs = zip(chunk["offsets"], chunk["sizes"], strict=True)
            covered[tuple(slice(first, first + size) for first, size in pairs)] += 1
        assert (covered == 1).all(), name
    assert sum(num_bytes) == sum(4 * int(np.prod(tensor["shape"])) for tensor in index.values())
    if ranks == 3:
        assert max(num_bytes) - min(num_bytes) <= 4 * len(index)


# On the nodes' own disks


def save_on_nodes(here: Runtime, config: RunConfig, folder: Path, shared_steps: int) -> None:
    """Step 1 and perhaps 2 in the shared folder, steps 2 and 3 on the nodes."""
    engine = start(here, config)
    shared, on_node = shared_level(engine, folder, NEVER), node_level(engine, folder, NEVER)
    saver = saver_of(engine, shared, on_node)
    for step in (1, 2, 3):
        train(here, config, engine, [step])
        if step <= shared_steps:
            saver.after_step(RunState(step=step), 0b01, last=False)
        if step >= 2:
            saver.after_step(RunState(step=step), 0b10, last=False)
    saver.close()


def newest_here(here: Runtime, config: RunConfig, folder: Path) -> tuple[int, bool, dict[str, np.ndarray]]:
    """Step, whether it came from the nodes, and the state."""
    engine = start(here, config)
    stores = [shared_level(engine, folder).store, node_level(engine, folder).store]
    found = newest_of(stores, engine).found
    assert found is not None
    store, checkpoint = found
    state = store.restore(checkpoint, engine)
    return state.step, store.on_node, whole_state(engine)


def read_with_an_index_lost(here: Runtime, config: RunConfig, folder: Path) -> tuple[list[str], int]:
    """On nodes' disks, where rank 1 cannot read an index: what is passed over, and how many ranks say that then."""
    engine = start(here, config)
    store = node_level(engine, folder).store
    store.save(engine, RunState(step=1), {})
    if here.rank == 1:
        store_module.read_index = lambda path: refuse_damage(path, {"tensors.json": {"bytes": 0}})
    passed_over = [str(error) for error in newest_of([store], engine).passed_over]
    return passed_over, sum(all_gather_results("count", folder, engine.groups.control, lambda: len(passed_over)))


def test_an_index_unreadable_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    for passed_over, total in run_ranks(
        read_with_an_index_lost, 2, run_config("gpt", *batches(2)), tmp_path, timeout=60.0
    ):
        assert total == 2
        (text,) = passed_over
        assert "node-1/checkpoints/step-00000001/tensors.json has" in text


SPREAD = {"gpt-dp": {"zero_stage": 0}, "tied-tp": {"zero_stage": 1, "tp": 2}, "pp": {"zero_stage": 3, "pp": 2}}


@pytest.mark.parametrize("spread", SPREAD)
def test_each_node_resumes_from_its_own_disk(tmp_path: Path, spread: str) -> None:
    values = SPREAD[spread]
    dp = 2 // (values.get("tp", 1) * values.get("pp", 1))
    config = run_config("gpt", *batches(dp), **values)
    run_ranks(save_on_nodes, 2, config, tmp_path, 2)
    step, on_node, state = run_ranks(newest_here, 2, config, tmp_path)[0]
    assert (step, on_node) == (3, True)
    shutil.rmtree(tmp_path / "node-0" / "checkpoints" / "step-00000003")
    assert run_ranks(newest_here, 2, config, tmp_path)[0][:2] == (2, True), "the nodes must both have it"
    damaged = tmp_path / "node-1" / "checkpoints" / "step-00000002" / "__1_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    step, on_node, earlier = run_ranks(newest_here, 2, config, tmp_path)[0]
    assert (step, on_node) == (2, False), "of a step, the shared one is as good"
    assert not same([state], [earlier])


def test_node_local_checkpoints_cannot_change_the_layout(tmp_path: Path) -> None:
    config = run_config("gpt", *batches(2), zero_stage=1)
    run_ranks(save_on_nodes, 2, config, tmp_path, 1)
    other = run_config("gpt", *batches(1), zero_stage=1, tp=2)
    assert run_ranks(newest_here, 2, other, tmp_path)[0][:2] == (1, False)
    # Gathered on one disk, the parts of both nodes are a whole.
    one = tmp_path / "node-0" / "checkpoints" / "step-00000003"
    two = tmp_path / "node-1" / "checkpoints" / "step-00000003"
    assert not {path.name for path in one.glob("*.distcp")} & {path.name for path in two.glob("*.distcp")}


# At a URL


def mirror_saves(here: Runtime, config: RunConfig, folder: Path, url: str, steps: int) -> None:
    engine = start(here, config)
    mirror = Mirror(url, 2, config.data.cache, here.rank, here.world_size)
    saver = saver_of(engine, shared_level(engine, folder), mirror=mirror)
    for step in range(1, steps + 1):
        train(here, config, engine, [step])
        saver.after_step(RunState(step=step), 0, last=step == steps)
    saver.close()


def fetch(here: Runtime, folder: Path, url: str) -> None:
    Mirror(url, 2, cache_config(folder, retries=0), 0, 1).begin(folder / "checkpoints")


def test_a_mirror_returns_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    url, config = f"file://{tmp_path}/mirror", run_config("gpt", *batches(2), zero_stage=1)
    run_ranks(mirror_saves, 2, config, tmp_path / "run", url, 3)
    assert sorted(path.name for path in (tmp_path / "mirror").iterdir()) == ["step-00000002", "step-00000003"]
    run_ranks(fetch, 1, tmp_path / "new", url)
    newest = newest_whole(tmp_path / "new" / "checkpoints")
    assert newest is not None and newest.step == 3
    original = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000003")
    assert newest.manifest == original.manifest
    damaged = tmp_path / "mirror" / "step-00000003" / "__0_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run_ranks(fetch, 1, tmp_path / "newer", url)
    newest = newest_whole(tmp_path / "newer" / "checkpoints")
    assert newest is not None and newest.step == 2
    assert [path.name for path in (tmp_path / "newer" / "checkpoints").iterdir()] == ["step-00000002"]


def test_no_piece_is_larger_than_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.checkpoint import tensors
    from pretrain.engine.interface import StateShard

    monkeypatch.setattr(tensors, "BUCKET_BYTES", 64)
    data = torch.arange(7 * 5 * 3, dtype=torch.float32)
    shard = StateShard("weight/x", (9, 5, 3), (1, 0, 0), (7, 5, 3), 4, data[4:101])
    whole = torch.full((9, 5, 3), torch.nan)
    for chunk in tensors.chunks_of(shard):
        assert chunk.data.nbytes <= 64
        whole[tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))] = chunk.data
    held = whole[1:8].flatten()
    assert torch.equal(held[4:101], data[4:101]) and held[:4].isnan().all() and held[101:].isnan().all()
    (name,) = files.write_tensors(tmp_path, 0, tensors.chunks_of(shard), lambda: None)
    files.merge_indices(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {name, files.INDEX}

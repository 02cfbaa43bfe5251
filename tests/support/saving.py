"""Saves checkpoints of a small run, for the tests of the store."""

from pathlib import Path

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import Engine
from pretrain.run.state import RunState
from tests.support.training import start


def store_of(engine: Engine, folder: Path, keep_last: int = 3, keep_every: int = 0) -> CheckpointStore:
    return CheckpointStore(folder, groups=engine.groups, keep_last=keep_last, keep_every=keep_every)


def save_steps(here: Runtime, config: RunConfig, folder: Path, steps: list[int], *keep: int) -> None:
    engine = start(here, config)
    store = store_of(engine, folder, *keep)
    for step in steps:
        store.save(engine, RunState(step=step, position=10 * step), {"note": "kept as given"})

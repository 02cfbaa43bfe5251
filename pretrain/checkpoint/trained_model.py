"""A trained model as an engine that computes and does not train: for text, scores and the check of an export."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.config.derived import data_parallel_size, model_vocab_size
from pretrain.config.engine import OffloadConfig
from pretrain.config.errors import ConfigError, RunError
from pretrain.config.layout_checks import layout_problems
from pretrain.config.parallel import ParallelConfig
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import world_from_environment
from pretrain.distributed.join import joined_ranks
from pretrain.run.tokenizer import tokenizer_place

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint
    from pretrain.checkpoint.store import CheckpointStore
    from pretrain.distributed.groups import ProcessGroups
    from pretrain.distributed.runtime import Runtime
    from pretrain.engine.interface import Engine


@dataclass(frozen=True)
class TrainedModel:
    """An engine with the weights of a checkpoint, on the ranks that hold it."""

    engine: "Engine"
    here: "Runtime"
    groups: "ProcessGroups"
    store: "CheckpointStore"
    """It can load the weights of other checkpoints of the run."""


def without_training(
    trained: RunConfig, parallel: ParallelConfig, device: Literal["auto", "cpu", "cuda"], world_size: int
) -> RunConfig:
    """The run's configuration in another layout, whatever layout it was trained with, and without an optimizer.

    Raises ConfigError if that layout does not fit.
    """
    dp = data_parallel_size(parallel, world_size) or 1
    used = dataclasses.replace(
        trained,
        parallel=parallel,
        # No update is made, the device may differ, and compile would make a graph for each length.
        engine=dataclasses.replace(
            trained.engine,
            zero_stage=0,
            offload=OffloadConfig(optimizer="none", params="none", nvme_path=None),
            device=device,
            attention="auto",
            compile="none",
        ),
        train=dataclasses.replace(trained.train, micro_batch_size=1, global_batch_size=dp * max(1, parallel.pp)),
    )
    problems = list(layout_problems(used, world_size))
    if problems:
        raise ConfigError(problems)
    return used


def find_checkpoint(folder: Path, name: str) -> "Checkpoint":
    """The checkpoint called `name` or, for `latest`, the newest whole one."""
    from pretrain.checkpoint.on_disk import newest_whole, read_checkpoint

    names = sorted(path.name for path in folder.glob("step-*") if path.suffix == "")
    if name != "latest" and name not in names:
        there = f"there are {', '.join(names)}" if names else "the folder has no checkpoint yet"
        raise RunError(f"checkpoint={name}: no such checkpoint in {folder}", there)
    checkpoint = newest_whole(folder) if name == "latest" else read_checkpoint(folder / name)
    if checkpoint is None:
        raise RunError(f"{folder}: no whole checkpoint yet", "train first, or wait for the first save")
    return checkpoint


def find_fitting_checkpoint(run: Path, name: str, config: RunConfig, tokenizer: Tokenizer) -> "Checkpoint":
    """Like `find_checkpoint`; raises RunError if it was trained with another tokenizer than the run has now."""
    checkpoint = find_checkpoint(run / "checkpoints", name)
    if checkpoint.manifest.get("tokenizer_fingerprint") != tokenizer.fingerprint:
        there = tokenizer_place(run, config.data)
        raise RunError(
            f"{checkpoint.folder} was not trained with the tokenizer in {there}",
            "restore the tokenizer of the run",
        )
    return checkpoint


@contextlib.contextmanager
def trained_engine(
    run: Path, used: RunConfig, tokenizer: Tokenizer, find: Callable[[], "Checkpoint"], *, seed: int
) -> Iterator["TrainedModel"]:
    """An engine on all ranks with the weights of the checkpoint that `find` gives on rank 0.

    `find` is called again if a live run deletes that checkpoint meanwhile.
    """
    rank, _, _ = world_from_environment()
    found = find() if rank == 0 else None  # before the ranks meet, so that a mistake is reported at once
    with joined_ranks(used, seed=seed) as (here, groups):
        from pretrain.checkpoint.store import CheckpointStore
        from pretrain.distributed.vendor_imports import megatron_imports

        with megatron_imports():
            from pretrain.engine.build import build_engine

        store = CheckpointStore(run, groups=groups, keep_last=1)
        vocab_size = model_vocab_size(used.model, tokenizer.vocab_size)
        engine = build_engine(used, vocab_size, groups, here.device, eod_id=tokenizer.eod_id)
        store.restore_weights(engine, found, find)
        yield TrainedModel(engine, here, groups, store)

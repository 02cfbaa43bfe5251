"""The start of training: from a checkpoint of the run or of its trunk, other weights, or random weights."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.stream.mixture import TrainingData
from pretrain.config.changes import Change
from pretrain.config.run import RunConfig
from pretrain.run.state import RunState
from pretrain.training.data import check_same_data

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint
    from pretrain.checkpoint.resume_point import ResumePoint
    from pretrain.training.assembly import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The state that an attempt starts from; the engine holds its tensors."""

    state: RunState
    resumed: "Checkpoint | None"
    """The checkpoint of this run that it was loaded from; None: its first start."""
    origin: Mapping[str, Any]
    """The origin of the first weights of the run, for the records."""
    data_changes: list[Change]
    """How the data differs from that of the checkpoint, as accepted."""


def load_start(trainer: "Trainer", resume_point: "ResumePoint", initial: "Checkpoint | None") -> Start:
    """Load the tensors on all ranks: of the newest checkpoint, else of the one that the configuration names.

    `initial`: what `find_initial_weights` found; rank 0 has it.
    """
    from pretrain.checkpoint.init_from import load_initial, origin_of

    config, dataset = trainer.config, trainer.dataset
    if resume_point.found is None and config.run.branch_from is not None:
        return load_branch(trainer, Path(config.run.branch_from))
    if resume_point.found is None:
        origin = load_initial(
            resume_point.levels[0].store, trainer.engine, initial, initial_weights_finder(config, dataset)
        )
        return Start(RunState(), None, origin, [])
    store, newest = resume_point.found
    changes = check_same_data(newest.manifest, dataset, newest.folder, config.run.accept_changes)
    state = store.restore(newest, trainer.engine)
    log.info("resumed from %s: step %d, sample %d", newest.folder, state.step, state.position)
    return Start(state, newest, origin_of(newest), changes)


def load_branch(trainer: "Trainer", trunk: Path) -> Start:
    """Load the whole state of another run's checkpoint on all ranks; the new run begins with its next step."""
    from pretrain.checkpoint.branch import origin_of_branch
    from pretrain.checkpoint.store import CheckpointStore

    config = trainer.config
    store = CheckpointStore(trunk.parents[1], groups=trainer.groups, keep_last=1)
    checkpoint = store.checked(trunk.name)
    changes = check_same_data(checkpoint.manifest, trainer.dataset, trunk, config.run.accept_changes)
    state = store.restore(checkpoint, trainer.engine)
    log.info("continues %s in a run of its own: step %d, sample %d", trunk, state.step, state.position)
    return Start(state, None, origin_of_branch(checkpoint), changes)


def find_initial_weights(config: RunConfig, dataset: TrainingData) -> "Checkpoint | None":
    """The checkpoint that `run.init_from` or `run.branch_from` names, checked against model and tokenizer.

    None if neither key is set or the run has checkpoints of its own.
    """
    if config.run.branch_from is not None:
        from pretrain.checkpoint.branch import find_trunk

        return find_trunk(config, dataset.manifest.tokenizer)
    if config.run.init_from is None:
        return None
    from pretrain.checkpoint.init_from import find_initial

    tokenizer = dataset.manifest.tokenizer
    return find_initial(config.run.init_from, Path(config.run.dir), config.model, tokenizer, config.optim)


def initial_weights_finder(config: RunConfig, dataset: TrainingData) -> "Callable[[], Checkpoint] | None":
    """A function that finds and checks this checkpoint even if the run has its own; None without `run.init_from`."""
    if config.run.init_from is None:
        return None
    from pretrain.checkpoint.init_from import find_fitting

    return partial(find_fitting, config.run.init_from, config.model, dataset.manifest.tokenizer)

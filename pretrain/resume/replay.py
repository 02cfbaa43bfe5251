"""`pretrain verify-resume` recomputes recorded steps of a run from the checkpoint before them, and compares.

It only reads the run folder, so the run may be training.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.stream.mixture import TrainingData
from pretrain.config.changes import REPLAYED_WITH
from pretrain.config.checks import check_run
from pretrain.config.errors import RunError
from pretrain.config.load import read_run_config, run_config_of, with_overrides
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import world_from_environment
from pretrain.distributed.join import joined_ranks
from pretrain.resume.compare import Comparison, StepPair, Values, compare_steps, recorded_steps
from pretrain.resume.tolerance import Facts, facts_now, facts_of_checkpoint, facts_of_last_attempt, tolerance_for
from pretrain.run.config_history import CONFIG_FILE, check_not_edited
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.metrics_file import METRICS_FILE, all_records
from pretrain.tracking.provenance import describe_environment
from pretrain.training.data import check_same_data, open_datasets
from pretrain.training.time_limit import EarlierCuts, earlier_cuts

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint
    from pretrain.distributed.groups import ProcessGroups
    from pretrain.distributed.runtime import Runtime

DEFAULT_STEPS = 10
"""Steps to recompute, at most, without `--steps`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayPlan:
    """The steps to recompute, and what they need."""

    checkpoint: "Checkpoint"
    config: RunConfig
    """The configuration of the attempt that recorded the steps."""
    recorded: Mapping[int, Values]
    """The records to compare with: all after the checkpoint, up to the last step wanted."""
    origins: Sequence[Facts]
    """The facts of the attempts that saved the checkpoint and recorded the steps."""
    cuts: EarlierCuts
    """The decisions of train.max_minutes to shorten the run between these steps."""


@dataclass(frozen=True)
class ReplayReport:
    """The recomputed steps beside their records, and the result."""

    run: Path
    checkpoint: Path
    pairs: Sequence[StepPair]
    comparison: Comparison


def verify_resume(
    run: Path, overrides: Sequence[str] = (), *, steps: int | None = None, checkpoint: int | None = None
) -> ReplayReport:
    """Recompute recorded steps on the ranks that were started; returns the same report on every rank.

    `steps`: how many, by default at most 10; `checkpoint`: the step of the checkpoint to start from.
    Raises UserError if there is nothing to recompute or it cannot be recomputed here.
    """
    rank, world_size, _ = world_from_environment()
    used = with_overrides(read_run_config(run / CONFIG_FILE), overrides, REPLAYED_WITH)
    check_settings(run)
    check_run(used, world_size)
    dataset, _ = open_datasets(used)
    plan = plan_replay(run, steps, checkpoint) if rank == 0 else None

    with joined_ranks(used) as (here, groups):
        import torch.distributed as dist

        plans = [plan]
        dist.broadcast_object_list(plans, src=0, group=groups.control)  # a live run's files change while they are read
        plan = plans[0]
        assert plan is not None
        check_same_data(plan.checkpoint.manifest, dataset, plan.checkpoint.folder, used.run.accept_changes)
        config = as_recorded(plan.config, used)
        check_run(config, world_size)
        pairs = replay(plan, with_own_scratch(config), dataset, here, groups)
        now = facts_now(config, groups.layout, describe_environment())
        why = tolerance_for(plan.origins, now, on_gpu=here.device.type == "cuda")
    return ReplayReport(run, plan.checkpoint.folder, pairs, compare_steps(pairs, plan.checkpoint.step, why))


def check_settings(run: Path) -> None:
    """Raise RunError if config.yaml was edited since: the records were made with other settings."""
    for _, folder in sorted(checkpoints_of(run).items(), reverse=True):
        manifest = manifest_of(folder)
        if manifest is not None:
            check_not_edited(run, run_config_of(manifest["config"], str(folder)))
            return


def plan_replay(run: Path, steps: int | None, checkpoint: int | None) -> ReplayPlan:
    """Choose and check the checkpoint: the newest whole one with enough records after it, unless given."""
    from pretrain.checkpoint.on_disk import read_checkpoint

    records, unlike = recorded_steps(all_records(run))
    for message in unlike:
        log.warning("%s: %s", run / METRICS_FILE, message)
    saved = checkpoints_of(run)
    if not records:
        raise RunError(f"{run / METRICS_FILE}: no recorded steps to compare with")
    if not saved:
        raise RunError(f"{run}: no checkpoint yet", "train first, or wait for the first save")
    if checkpoint is not None and checkpoint not in saved:
        there = ", ".join(map(str, sorted(saved)))
        raise RunError(
            f"--checkpoint {checkpoint}: {run} has no checkpoint of that step; its checkpoints are of steps {there}"
        )
    needed = 1 if steps is None else steps
    for step in sorted(saved, reverse=True) if checkpoint is None else [checkpoint]:
        wanted = [number for number in records if number > step][: DEFAULT_STEPS if steps is None else steps]
        if len(wanted) < needed:
            continue
        try:
            whole = read_checkpoint(saved[step])
        except RunError as error:
            if checkpoint is not None:
                raise
            log.warning("%s; trying the one before", error.one_line)
            continue
        config, origins = attempts_after(run, saved, step, wanted[-1])
        found = {number: records[number] for number in wanted}
        state = RunState.from_json(whole.manifest["state"])
        cuts = earlier_cuts(all_records(run), state, RunLength.of(config))
        return ReplayPlan(whole, config, found, [facts_of_checkpoint(whole.manifest), *origins], cuts)
    after = "a whole checkpoint" if checkpoint is None else f"checkpoint {checkpoint}"
    raise RunError(
        f"{run}: {f'no {needed} steps are' if needed > 1 else 'no step is'} recorded after {after}; checkpoints are of "
        f"steps {', '.join(map(str, sorted(saved)))}, the last recorded step is {max(records)}",
        "train further, give fewer --steps, or keep more checkpoints (checkpoint.keep_last)",
    )


def checkpoints_of(run: Path) -> dict[int, Path]:
    """Step -> folder of its checkpoint, whole or damaged."""
    from pretrain.checkpoint.manifest import step_of

    named = ((step_of(path), path) for path in (run / "checkpoints").glob("step-*"))
    return {step: path for step, path in named if step is not None}


def attempts_after(run: Path, saved: Mapping[int, Path], step: int, last: int) -> tuple[RunConfig, list[Facts]]:
    """The configuration that computed the steps after `step`, and the facts of all attempts up to step `last`.

    The attempt that saved the next checkpoint recorded the steps before it; after the newest one it was the last.
    """
    manifests = []
    for later in sorted(number for number in saved if number > step):
        manifest = manifest_of(saved[later])
        if manifest is not None:
            manifests.append((later, manifest))
        if later >= last:
            break
    facts = [facts_of_checkpoint(manifest) for _, manifest in manifests]
    if not manifests or manifests[-1][0] < last:
        facts.append(facts_of_last_attempt(run))
    if manifests:
        number, manifest = manifests[0]
        return run_config_of(manifest["config"], str(saved[number])), facts
    return read_run_config(run / CONFIG_FILE), facts


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint without a look at its files; None if it cannot be read."""
    from pretrain.checkpoint.manifest import read_manifest

    try:
        manifest = read_manifest(folder)
        return manifest if manifest.get("config") else None
    except RunError:
        return None


def replay(
    plan: ReplayPlan, config: RunConfig, dataset: TrainingData, here: "Runtime", groups: "ProcessGroups"
) -> list[StepPair]:
    """Run the training loop from the checkpoint to the last step wanted; nothing is validated or saved."""
    from pretrain.checkpoint.store import CheckpointStore
    from pretrain.training.assembly import build_trainer

    every_step = replace(config, tracking=replace(config.tracking, log_every_steps=1))
    trainer = build_trainer(every_step, dataset, here, groups)
    store = CheckpointStore(plan.checkpoint.folder.parents[1], groups=groups, keep_last=1)
    pairs: list[StepPair] = []

    def record(kind: str, step: int, values: Values) -> None:
        if kind == "train" and step in plan.recorded:
            pairs.append(StepPair(step, plan.recorded[step], values))

    state = store.restore(plan.checkpoint, trainer.engine)
    trainer.train(state, record=record, time_limit=plan.cuts, last_step=max(plan.recorded))
    return pairs


def as_recorded(recorded: RunConfig, used: RunConfig) -> RunConfig:
    """The configuration that computed the steps, with the layout, engine and data that are used here."""
    train = replace(recorded.train, micro_batch_size=used.train.micro_batch_size)
    return replace(recorded, parallel=used.parallel, engine=used.engine, train=train, data=used.data)


def with_own_scratch(config: RunConfig) -> RunConfig:
    """The configuration with a folder of its own for NVMe offload: the run may be using its folder."""
    return replace(config, run=replace(config.run, dir=f"{config.run.dir}-verified-by-{os.getpid()}"))

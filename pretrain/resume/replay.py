"""`pretrain verify-resume`: recorded steps of a run computed again from the checkpoint before them, and compared.

Reads the run folder and writes nothing, so that it may be that of a run that is training.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.stream.mixture import TrainingData
from pretrain.config.checks import check_run
from pretrain.config.errors import RunError
from pretrain.config.load import read_run_config, run_config_of, with_overrides
from pretrain.config.run import RunConfig
from pretrain.distributed.environment import set_variables
from pretrain.distributed.grid import ParallelLayout, world_from_environment
from pretrain.model.flops import token_flops
from pretrain.resume.compare import Pair, Values, Verdict, judge, recorded_steps
from pretrain.resume.tolerance import Facts, excuse, facts_now, facts_of_checkpoint, facts_of_last_attempt
from pretrain.run.folder import CONFIG_FILE, check_not_edited
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.metrics_file import METRICS_FILE, all_records
from pretrain.tracking.provenance import describe_environment
from pretrain.tracking.speed import StepClock
from pretrain.training.data import batches_from, check_same_data, open_datasets
from pretrain.training.time_limit import Earlier, earlier_cuts

if TYPE_CHECKING:
    from pretrain.checkpoint.store import Checkpoint
    from pretrain.distributed.groups import ProcessGroups

AT_MOST = 10
"""Steps, unless more are asked for."""
MAY_CHANGE = ("parallel.", "engine.", "train.micro_batch_size", "data.path", "data.cache.")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is to be repeated."""

    checkpoint: "Checkpoint"
    config: RunConfig
    """Of the attempt that recorded the steps."""
    recorded: Mapping[int, Values]
    """The steps to compare: all that were recorded after the checkpoint, up to the last one wanted."""
    origins: Sequence[Facts]
    """Of the attempts that saved the checkpoint and recorded the steps."""
    cuts: Earlier
    """Where train.max_minutes shortened the run between these steps."""


@dataclass(frozen=True)
class Report:
    """What repeating showed, step by step."""

    run: Path
    checkpoint: Path
    pairs: Sequence[Pair]
    verdict: Verdict


def verify_resume(
    run: Path, overrides: Sequence[str] = (), *, steps: int | None = None, checkpoint: int | None = None
) -> Report:
    """Repeat recorded steps on the ranks there are; the same report on every rank.

    `steps`: how many of the recorded ones, default at most 10; `checkpoint`: the step of the one to start from.
    Raises UserError where there is nothing to repeat or it cannot be repeated here.
    """
    rank, world_size, _ = world_from_environment()
    used = with_overrides(read_run_config(run / CONFIG_FILE), overrides, MAY_CHANGE)
    check_settings(run)
    check_run(used, world_size)
    dataset, _ = open_datasets(used)
    plan = plan_replay(run, steps, checkpoint) if rank == 0 else None
    layout = ParallelLayout(world_size, used.parallel.tp, used.parallel.pp)
    set_variables(layout)

    import torch.distributed as dist

    from pretrain.distributed.groups import build_groups
    from pretrain.distributed.runtime import runtime

    with runtime(used.engine, layout=layout) as here:
        groups = build_groups(layout, used.run.seed, here.group_timeout_minutes, here.device, vp=used.parallel.vp)
        plans = [plan]
        dist.broadcast_object_list(plans, src=0, group=groups.control)  # a live run's files change while they are read
        plan = plans[0]
        assert plan is not None
        check_same_data(plan.checkpoint.manifest, dataset, plan.checkpoint.folder, used.run.accept_changes)
        config = as_recorded(plan.config, used)
        check_run(config, world_size)
        pairs = replay(plan, scratch_apart(config), dataset, groups, here.device)
        now = facts_now(config, layout, describe_environment())
        why = excuse(plan.origins, now, on_gpu=here.device.type == "cuda")
    return Report(run, plan.checkpoint.folder, pairs, judge(pairs, plan.checkpoint.step, why))


def check_settings(run: Path) -> None:
    """Raise RunError if config.yaml was edited since; its settings are not those that the record was made with."""
    for _, folder in sorted(checkpoints_of(run).items(), reverse=True):
        manifest = manifest_of(folder)
        if manifest is not None:
            check_not_edited(run, run_config_of(manifest["config"], str(folder)))
            return


def plan_replay(run: Path, steps: int | None, checkpoint: int | None) -> Plan:
    """Choose the checkpoint, its files checked: the newest whole one with enough records after it, unless named."""
    from pretrain.checkpoint.store import read_checkpoint

    records, unlike = recorded_steps(all_records(run))
    for words in unlike:
        log.warning("%s: %s", run / METRICS_FILE, words)
    saved = checkpoints_of(run)
    if not records:
        raise RunError(f"{run / METRICS_FILE}: no recorded steps; there is nothing to compare with")
    if not saved:
        raise RunError(f"{run}: no checkpoint yet; train first, or wait for the first save")
    if checkpoint is not None and checkpoint not in saved:
        there = ", ".join(map(str, sorted(saved)))
        raise RunError(f"--checkpoint {checkpoint}: no checkpoint of that step in {run}; there are those of {there}")
    needed = 1 if steps is None else steps
    for step in sorted(saved, reverse=True) if checkpoint is None else [checkpoint]:
        wanted = [number for number in records if number > step][: AT_MOST if steps is None else steps]
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
        return Plan(whole, config, found, [facts_of_checkpoint(whole.manifest), *origins], cuts)
    after = "a whole checkpoint" if checkpoint is None else f"checkpoint {checkpoint}"
    raise RunError(
        f"{run}: {f'no {needed} steps are' if needed > 1 else 'no step is'} recorded after {after}; checkpoints are of "
        f"steps {', '.join(map(str, sorted(saved)))}, the last recorded step is {max(records)}: "
        "train on, ask for fewer --steps, or keep more checkpoints (checkpoint.keep_last)"
    )


def checkpoints_of(run: Path) -> dict[int, Path]:
    """Step -> folder of what was saved, whole or damaged."""
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
    """What a checkpoint says of itself, its files not looked at; None where it cannot be read."""
    from pretrain.checkpoint.manifest import read_manifest

    try:
        manifest = read_manifest(folder)
        return manifest if manifest.get("config") else None
    except RunError:
        return None


def replay(plan: Plan, config: RunConfig, dataset: TrainingData, groups: "ProcessGroups", device: Any) -> list[Pair]:
    """The training loop itself, from the checkpoint to the last step wanted, with nothing validated or saved."""
    from pretrain.checkpoint.store import CheckpointStore
    from pretrain.distributed.vendor_imports import megatron_imports
    from pretrain.training.loop import NothingSaved, run_loop

    with megatron_imports():
        from pretrain.engine.build import build_engine

    tokenizer = dataset.manifest.tokenizer
    engine = build_engine(config, tokenizer.vocab_size, groups, device, eod_id=tokenizer.eod_id)
    store = CheckpointStore(plan.checkpoint.folder.parents[1], groups=groups, keep_last=1, keep_every=0)
    state = store.restore(plan.checkpoint, engine)
    pairs: list[Pair] = []

    def record(kind: str, step: int, values: Values) -> None:
        if kind == "train" and step in plan.recorded:
            pairs.append(Pair(step, plan.recorded[step], values))

    run_loop(
        config=replace(config, tracking=replace(config.tracking, log_every_steps=1)),
        engine=engine,
        batches=batches_from(state.position, config, dataset, groups),
        state=state,
        length=RunLength.of(config),
        last_step=max(plan.recorded),
        samples_counted_here=groups.tp_rank == groups.pp_rank == 0,
        clock=StepClock(token_flops(config.model, tokenizer.vocab_size), groups.layout.world_size, None),
        record=record,
        evaluate=lambda max_samples: {},
        checkpoints=NothingSaved(),
        stop_requested=lambda: False,
        control=groups.control,
        time_limit=plan.cuts,
    )
    return pairs


def as_recorded(recorded: RunConfig, used: RunConfig) -> RunConfig:
    """What computed the steps, on the ranks and data that are used here."""
    train = replace(recorded.train, micro_batch_size=used.train.micro_batch_size)
    return replace(recorded, parallel=used.parallel, engine=used.engine, train=train, data=used.data)


def scratch_apart(config: RunConfig) -> RunConfig:
    """With a folder name of its own for what is offloaded to a disk, which the run may be using."""
    return replace(config, run=replace(config.run, dir=f"{config.run.dir}-verified-by-{os.getpid()}"))

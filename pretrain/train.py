"""`pretrain train`, in reading order: configuration, run folder, data, process groups, model, engine, loop."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.folders import dataset_folders
from data_pipeline.mixture import Plan, TrainingData, mix
from data_pipeline.remote.ahead import check_cache_holds
from data_pipeline.shards.reader import PackedDataset
from pretrain.config.checks import check_run, tokens_per_step, total_steps
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.run import RunConfig
from pretrain.layout.grid import ParallelLayout, world_from_environment
from pretrain.model.flops import token_flops
from pretrain.model.size import checkpoint_bytes
from pretrain.optim.learning_rate import lr_at
from pretrain.run_folder import check_same_config, check_space, hold_run_folder, log_to_file, write_config
from pretrain.run_state import RunState
from pretrain.signals import stop_on_signals
from pretrain.tracking.provenance import describe_checkpoint, describe_run, write_description
from pretrain.tracking.sinks import Sink, build_sinks
from pretrain.tracking.speed import StepClock, device_peak
from pretrain.tracking.wandb_sink import check_wandb_login

if TYPE_CHECKING:
    from pretrain.checkpoint.store import CheckpointStore
    from pretrain.engine.interface import Engine

log = logging.getLogger(__name__)


def train(config: RunConfig) -> str:
    """Train, or go on training, the run of `config`; returns `finished` or `stopped` (saved, to be continued).

    Raises UserError before any work where the configuration, the data or the run folder cannot be used.
    """
    rank, world_size, local_rank = world_from_environment()
    # All that can be refused is refused before the run folder is made, and what takes no heavy import first.
    check_run(config, world_size)
    dataset, validation = open_datasets(config)
    check_enough_data(config, dataset)
    folder = Path(config.run.dir)
    check_same_config(folder, config)
    check_space(folder, checkpoint_bytes(config.model, dataset.manifest.tokenizer.vocab_size))
    if rank == 0:
        check_wandb_login(config.tracking)
    from pretrain.layout.runtime import choose_device

    choose_device(config.engine.device, local_rank)
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(hold_run_folder(folder))
        stop_requested = stack.enter_context(stop_on_signals())
        stack.enter_context(log_to_file(folder, rank))
        return run(config, folder, dataset, validation, stop_requested)


def run(
    config: RunConfig,
    folder: Path,
    dataset: TrainingData,
    validation: Mapping[str, PackedDataset],
    stop_requested: Callable[[], bool],
) -> str:
    """Build every part, restore the newest checkpoint, hand all to the loop."""
    # Not at the top: torch, DeepSpeed and Megatron take seconds to import, which a typing mistake need not wait for.
    from data_pipeline.loader import train_batches
    from pretrain.checkpoint.store import CheckpointStore
    from pretrain.evaluation.perplexity import evaluate
    from pretrain.layout.groups import build_groups
    from pretrain.layout.runtime import runtime
    from pretrain.layout.vendor_imports import megatron_imports
    from pretrain.loop import run_loop

    with megatron_imports():
        from pretrain.engine.build import build_engine

    manifest = dataset.manifest
    vocab_size, steps = manifest.tokenizer.vocab_size, total_steps(config)
    parallel = config.parallel
    layout = ParallelLayout(world_from_environment()[1], parallel.tp, parallel.pp)
    # The sinks are closed last: a failure is told to the other ranks before the network is asked for anything.
    with (
        contextlib.ExitStack() as closing,
        runtime(config.engine, layout=layout, stop_requested=stop_requested) as here,
    ):
        groups = build_groups(layout, config.run.seed, here.group_timeout_minutes, here.device, vp=parallel.vp)
        engine = build_engine(config, vocab_size, groups, here.device, eod_id=manifest.tokenizer.eod_id)
        store = CheckpointStore(
            folder,
            groups=groups,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
        )
        state = restore_newest(store, engine, dataset)
        if state.step >= steps:
            log.info("%s is finished: step %d of %d; nothing to do", folder, state.step, steps)
            return "finished"

        peak = device_peak(config.tracking.peak_tflops, here.gpu_name, config.engine.precision)
        description = describe_run(config, dataset, list(validation.values()), layout, peak)
        say_start(config, description, state, steps)
        sinks = Sinks()
        if here.is_main:
            write_config(folder, config)
            write_description(folder, description)
            sinks.open(build_sinks(config, folder, state.step, steps, description))
        closing.callback(sinks.close)
        state, sinks.outcome = run_loop(
            config=config,
            engine=engine,
            batches=here.count_steps(
                train_batches(
                    dataset,
                    seed=config.run.seed,
                    global_batch_size=config.train.global_batch_size,
                    rank=groups.dp_rank,
                    size=layout.dp,
                    position=state.position,
                ),
                state.step,
            ),
            state=state,
            total_steps=steps,
            lr_at=partial(
                lr_at,
                peak=config.optim.lr,
                schedule=config.lr_schedule,
                total_steps=steps,
                tokens_per_step=tokens_per_step(config),
            ),
            samples_counted_here=groups.tp_rank == groups.pp_rank == 0,
            clock=StepClock(token_flops(config.model, vocab_size), here.world_size, peak),
            record=sinks.record,
            evaluate=partial(
                evaluate,
                engine,
                validation,
                # As many micro-batches at once as there are stages, so that all have work.
                batch_size=(config.evaluation.micro_batch_size or config.train.micro_batch_size) * layout.pp,
                rank=groups.dp_rank,
                size=layout.dp,
            ),
            save=partial(save, store, engine, describe_checkpoint(config, manifest), dataset),
            stop_requested=stop_requested,
            control=groups.control,
            last_checkpoint=store.last_name,
        )
    if state.skipped_samples:
        log.warning(
            "%s of %s samples did not count: the log names their shards (data.on_bad_shard=skip)",
            f"{state.skipped_samples:,}",
            f"{state.position:,}",
        )
    if sinks.outcome == "stopped":
        log.info("stopped after step %d of %d, saved; the same command goes on from there", state.step, steps)
    return sinks.outcome


class Sinks:
    """The open sinks of this rank: none but on the main one."""

    def __init__(self) -> None:
        self._sinks: list[Sink] = []
        self.outcome = "failed"

    def open(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def record(self, kind: Any, step: int, values: Mapping[str, float | int | str]) -> None:
        for sink in self._sinks:
            sink.log(kind, step, values)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close(self.outcome)


def open_datasets(config: RunConfig) -> tuple[TrainingData, dict[str, PackedDataset]]:
    """What is trained on, checked against the model, and the validation split of each dataset by its name."""
    data, folders = config.data, dataset_folders(config.data)
    dataset: TrainingData
    skip = data.on_bad_shard == "skip"
    if data.mixture is None:
        dataset = PackedDataset.open(folders[data.name], "train", skip_bad_shards=skip)
    else:
        later = [(phase.after_tokens, phase.weights) for phase in data.mixture_later]
        dataset = mix(Plan(data.mixture, data.mixture_max_epochs or {}, later), folders, skip_bad_shards=skip)
    packed, wanted = dataset.manifest.seq_length, config.model.seq_length
    if packed != wanted:
        rule = f"the dataset in data.path={str(next(iter(folders.values())))!r} was packed for {packed} tokens"
        remedy = f"set model.seq_length={packed}, or prepare again with model.seq_length={wanted} and another data.path"
        raise ConfigError([Problem("model.seq_length", wanted, rule, remedy)])
    validation = {name: PackedDataset.open(folder, "validation") for name, folder in folders.items()}
    check_cache_holds([*dataset.parts, *validation.values()])
    return dataset, validation


def check_enough_data(config: RunConfig, dataset: TrainingData) -> None:
    """Raise ConfigError where a mixture whose datasets have an end is shorter than the run."""
    end = dataset.end
    needed = total_steps(config) * config.train.global_batch_size
    if end is not None and end < needed:
        rule = f"the mixture ends after {end:,} samples, the run takes {needed:,}"
        remedy = "raise data.mixture_max_epochs, shorten the run, or give more text"
        raise ConfigError([Problem("data.mixture_max_epochs", config.data.mixture_max_epochs, rule, remedy)])


def restore_newest(store: "CheckpointStore", engine: "Engine", dataset: TrainingData) -> RunState:
    """Load the newest whole checkpoint, if there is one; returns where the run stands."""
    newest = store.newest()
    if newest is None:
        return RunState()
    check_same_data(newest.manifest, dataset, newest.folder)
    state = store.restore(newest, engine)
    log.info("resumed from %s: step %d, sample %d", newest.folder, state.step, state.position)
    return state


def save(
    store: "CheckpointStore", engine: "Engine", description: Mapping[str, Any], dataset: TrainingData, state: RunState
) -> None:
    of_data = {"dataset_digest": dataset.digest_before(state.position)}
    log.info("saved %s", store.save(engine, state, {**description, **of_data}))


def check_same_data(saved: Mapping[str, Any], dataset: TrainingData, folder: Path) -> None:
    """Raise RunError where a checkpoint was trained on other tokens, up to its position, than the data holds."""
    position = int(saved["state"]["position"])
    for what, there, now in (
        ("tokenizer fingerprint", saved["tokenizer_fingerprint"], dataset.manifest.tokenizer.fingerprint),
        ("dataset digest", saved["dataset_digest"], dataset.digest_before(position)),
    ):
        if there != now:
            raise RunError(
                f"{folder}: {what} {there} there, {now} in {dataset.described}: the run was trained on other data; "
                "point data.path to the old dataset (data.mixture to the old datasets and weights; later weights may "
                "change), or choose another run.name"
            )


def say_start(config: RunConfig, description: Mapping[str, Any], state: RunState, steps: int) -> None:
    """The derived numbers, printed and never typed."""
    layout, data = description["layout"], description["data"]
    log.info(
        "%s: %s parameters, %d rank(s) as tp%d pp%d dp%d, ZeRO-%d %s, "
        "global batch %d = %d micro x %d accumulated x %d data-parallel",
        config.model.name,
        f"{description['parameters']['total']:,}",
        layout["world_size"],
        layout["tensor_parallel"],
        layout["pipeline_parallel"],
        layout["data_parallel"],
        config.engine.zero_stage,
        config.engine.precision,
        config.train.global_batch_size,
        config.train.micro_batch_size,
        layout["gradient_accumulation"],
        layout["data_parallel"],
    )
    step_tokens = tokens_per_step(config)
    log.info(
        "%s: %s training tokens; %d steps of %s tokens are %.2f epochs; starting after step %d",
        data["corpus"],
        f"{data['train_tokens']:,}",
        steps,
        f"{step_tokens:,}",
        steps * step_tokens / data["train_tokens"],
        state.step,
    )

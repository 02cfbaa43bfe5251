"""`pretrain train`, in reading order: configuration, run folder, data, process groups, model, engine, loop."""

import contextlib
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.shards.reader import PackedDataset
from pretrain.config.checks import check_run, tokens_per_step, total_steps
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.run import RunConfig
from pretrain.layout.grid import world_from_environment
from pretrain.model.flops import token_flops
from pretrain.model.size import checkpoint_bytes, count_parameters
from pretrain.optim.learning_rate import lr_at
from pretrain.run_folder import check_same_config, hold_run_folder, write_config
from pretrain.run_state import RunState
from pretrain.tracking.wandb_sink import check_wandb_login

log = logging.getLogger(__name__)


def train(config: RunConfig) -> str:
    """Train, or go on training, the run of `config`; returns `finished` or `stopped` (saved, to be continued).

    Raises UserError before any work where the configuration, the data or the run folder cannot be used.
    """
    rank, world_size, local_rank = world_from_environment()
    # All that can be refused is refused before the run folder is made, and what takes no heavy import first.
    check_run(config, data_parallel_size=world_size)
    dataset = open_dataset(config)
    validation = PackedDataset.open(dataset.folder, "validation")
    folder = Path(config.run.dir)
    check_same_config(folder, config)
    check_space(config, folder, dataset.manifest.tokenizer.vocab_size)
    if rank == 0:
        check_wandb_login(config.tracking)
    from pretrain.layout.runtime import choose_device

    choose_device(config.engine.device, local_rank)
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(hold_run_folder(folder))
        stop_requested = stack.enter_context(stop_on_signals())
        stack.enter_context(log_to_file(folder, rank))
        return _train(config, folder, dataset, validation, stop_requested)


def _train(
    config: RunConfig,
    folder: Path,
    dataset: PackedDataset,
    validation: PackedDataset,
    stop_requested: Callable[[], bool],
) -> str:
    # Not at the top: torch, DeepSpeed and Megatron take seconds to import, which a typing mistake need not wait for.
    from data_pipeline.loader import train_batches
    from pretrain.checkpoint.store import CheckpointStore
    from pretrain.evaluation.perplexity import evaluate
    from pretrain.layout.grid import ParallelLayout
    from pretrain.layout.groups import build_groups
    from pretrain.layout.runtime import runtime
    from pretrain.layout.vendor_imports import megatron_imports
    from pretrain.loop import run_loop
    from pretrain.tracking.sinks import build_sinks
    from pretrain.tracking.speed import StepClock, device_peak

    with megatron_imports():
        from pretrain.engine.build import build_engine

    manifest = dataset.manifest
    vocab_size, steps = manifest.tokenizer.vocab_size, total_steps(config)
    with runtime(config.engine) as here:
        groups = build_groups(
            ParallelLayout(here.world_size), config.run.seed, config.engine.timeout_minutes, here.device
        )
        dp_rank, dp_size = groups.dp_rank, groups.layout.dp
        engine = build_engine(config, vocab_size, groups, here.device)
        store = CheckpointStore(
            folder,
            control=groups.control,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
        )
        newest, state = store.newest(), RunState()
        if newest is not None:
            check_same_data(newest.manifest, dataset, newest.folder)
            state = store.restore(newest, engine)
            log.info("resumed from %s: step %d, sample %d", newest.folder, state.step, state.position)
        if state.step >= steps:
            log.info("%s is finished: step %d of %d; nothing to do", folder, state.step, steps)
            return "finished"

        peak = device_peak(config.tracking.peak_tflops, gpu_name(here.device), config.engine.precision)
        description = describe(config, dataset, here.world_size, peak)
        sinks = []
        if here.is_main:
            record_start(folder, config, description)
            sinks = build_sinks(config, folder, state.step, steps, description)
        say_start(config, description, state, steps)

        def record(kind: Any, step: int, values: Mapping[str, Any]) -> None:
            for sink in sinks:
                sink.log(kind, step, values)

        def lr_of(step: int) -> float:
            return lr_at(
                step,
                peak=config.optim.lr,
                schedule=config.lr_schedule,
                total_steps=steps,
                tokens_per_step=tokens_per_step(config),
            )

        outcome = "failed"
        try:
            state, outcome = run_loop(
                config=config,
                engine=engine,
                batches=train_batches(
                    dataset,
                    seed=config.run.seed,
                    global_batch_size=config.train.global_batch_size,
                    rank=dp_rank,
                    size=dp_size,
                    position=state.position,
                ),
                state=state,
                total_steps=steps,
                lr_at=lr_of,
                clock=StepClock(token_flops(config.model, vocab_size), here.world_size, peak),
                record=record,
                evaluate=lambda max_samples: evaluate(
                    engine,
                    validation,
                    batch_size=config.evaluation.micro_batch_size or config.train.micro_batch_size,
                    rank=dp_rank,
                    size=dp_size,
                    max_samples=max_samples,
                ),
                save=lambda now: log.info("saved %s", store.save(engine, now, checkpoint_description(config, dataset))),
                stop_requested=stop_requested,
                control=groups.control,
                last_checkpoint=store.last_name,
            )
        finally:
            for sink in sinks:
                sink.close(outcome)
    if outcome == "stopped":
        log.info("stopped after step %d of %d, saved; the same command goes on from there", state.step, steps)
    return outcome


def open_dataset(config: RunConfig) -> PackedDataset:
    """The training split, checked against the model."""
    dataset = PackedDataset.open(Path(config.data.path), "train")
    packed, wanted = dataset.manifest.seq_length, config.model.seq_length
    if packed != wanted:
        rule = f"the dataset in data.path={config.data.path!r} was packed for {packed} tokens"
        remedy = f"set model.seq_length={packed}, or prepare again with model.seq_length={wanted} and another data.path"
        raise ConfigError([Problem("model.seq_length", wanted, rule, remedy)])
    return dataset


def check_space(config: RunConfig, folder: Path, vocab_size: int) -> None:
    """Raise RunError where the disk has no room for one checkpoint."""
    needed = checkpoint_bytes(config.model, vocab_size)
    standing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(standing).free
    if free < needed:
        raise RunError(
            f"run.dir={str(folder)!r}: no space left: one checkpoint takes {needed / 2**30:.2f} GiB, "
            f"{free / 2**30:.2f} GiB are free; make room or choose a run.dir on another disk"
        )


def check_same_data(saved: Mapping[str, Any], dataset: PackedDataset, folder: Path) -> None:
    """Raise RunError where a checkpoint was trained on other tokens than the dataset holds."""
    manifest = dataset.manifest
    for what, there, now in (
        ("tokenizer fingerprint", saved["tokenizer_fingerprint"], manifest.tokenizer.fingerprint),
        ("dataset digest", saved["dataset_digest"], manifest.digest),
    ):
        if there != now:
            raise RunError(
                f"{folder}: {what} {there} there, {now} in {dataset.folder}: the run was trained on other data; "
                "point data.path to the old dataset, or choose another run.name"
            )


def checkpoint_description(config: RunConfig, dataset: PackedDataset) -> dict[str, Any]:
    """What a checkpoint says of itself besides its tensors."""
    from pretrain.tracking.provenance import describe_environment

    manifest = dataset.manifest
    return {
        "config": asdict(config),
        "environment": describe_environment(),
        "parameters": count_parameters(config.model, manifest.tokenizer.vocab_size).total,
        "vocab_size": manifest.tokenizer.vocab_size,
        "tokenizer_fingerprint": manifest.tokenizer.fingerprint,
        "dataset_digest": manifest.digest,
    }


def describe(config: RunConfig, dataset: PackedDataset, world_size: int, peak: Any) -> dict[str, Any]:
    """What this attempt is, for the run folder, wandb and the report."""
    from pretrain.tracking.provenance import describe_environment

    manifest = dataset.manifest
    count = count_parameters(config.model, manifest.tokenizer.vocab_size)
    micro_batches = config.train.global_batch_size // (config.train.micro_batch_size * world_size)
    return {
        "parameters": {**asdict(count), "total": count.total},
        "layout": {"world_size": world_size, "data_parallel": world_size, "gradient_accumulation": micro_batches},
        "data": {
            "corpus": manifest.corpus.name,
            "corpus_digest": manifest.corpus.digest,
            "dataset_digest": manifest.digest,
            "tokenizer": f"{manifest.tokenizer.kind}, {manifest.tokenizer.vocab_size} pieces",
            "tokenizer_fingerprint": manifest.tokenizer.fingerprint,
            "train_tokens": manifest.splits["train"].num_tokens,
            "validation_bytes": manifest.splits["validation"].num_text_bytes,
        },
        "peak": {"tflops": peak.flops / 1e12, "source": peak.source} if peak else None,
        **describe_environment(),
    }


def record_start(folder: Path, config: RunConfig, description: Mapping[str, Any]) -> None:
    from pretrain.tracking.provenance import write_description

    write_config(folder, config)
    write_description(folder, description)


def say_start(config: RunConfig, description: Mapping[str, Any], state: RunState, steps: int) -> None:
    """The derived numbers, printed and never typed."""
    layout, data = description["layout"], description["data"]
    log.info(
        "%s: %s parameters, %d rank(s), ZeRO-%d %s, global batch %d = %d micro x %d accumulated x %d ranks",
        config.model.name,
        f"{description['parameters']['total']:,}",
        layout["world_size"],
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


def gpu_name(device: Any) -> str | None:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM, SIGINT or SIGUSR1 ask for a stop after the current step; the same signal again acts as usual."""
    requested = threading.Event()

    def ask(number: int, _: object) -> None:
        if requested.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        requested.set()
        log.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield requested.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def log_to_file(folder: Path, rank: int) -> Iterator[None]:
    """All ranks write their log into the run folder; rank 0 alone also speaks to the console."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(logs / f"rank-{rank:05d}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s [rank {rank}] %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

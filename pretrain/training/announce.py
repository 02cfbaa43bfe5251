"""The log lines of `train` at the start and at the end of a run, with all derived numbers."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.stream.mixture import TrainingData
from pretrain.config.errors import ConfigError
from pretrain.config.load import read_run_config
from pretrain.config.run import RunConfig
from pretrain.run.config_history import CONFIG_FILE
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.training.data import epochs_at

log = logging.getLogger(__name__)


def announce_start(config: RunConfig, description: Mapping[str, Any], dataset: TrainingData, state: RunState) -> None:
    """Log model, layout and batch, the length of the run, and its epochs of each dataset."""
    layout, data, length = description["layout"], description["data"], RunLength.of(config)
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
    log.info(
        "%s: %s training tokens; the run ends with step %d, after %s tokens: %s; starting after step %d",
        data["corpus"],
        f"{data['train_tokens']:,}",
        length.end_step(state),
        f"{length.end_tokens(state):,}",
        epochs_text(epochs_at(dataset, length.end_position(state))),
        state.step,
    )
    warn_of_repeated_data(config, dataset, length.end_position(state))


def announce_new_length(folder: Path, config: RunConfig, state: RunState) -> None:
    """Log a warning if a resume changes the length of the run in a folder, and with it the next learning rate."""
    try:
        before = read_run_config(folder / CONFIG_FILE)
    except ConfigError:  # it is missing, or from a version with other keys
        return
    # Only the earlier length: a change of optim.lr is not a change of the length.
    earlier, now = RunLength.of(replace(config, train=before.train)), RunLength.of(config)
    lr_before, lr_now = earlier.lr(state), now.lr(state)
    if math.isclose(lr_before, lr_now, rel_tol=1e-6):
        return
    log.warning(
        "step %d: the learning rate changes from %.3g (old length, end after step %d) to %.3g (new length, end after "
        "step %d): lr_schedule.name=%s depends on the length of the run. To lengthen a run without this change, use "
        "lr_schedule=wsd and resume from a checkpoint before its decay",
        state.step + 1,
        lr_before,
        earlier.end_step(state),
        lr_now,
        now.end_step(state),
        config.lr_schedule.name,
    )


def warn_of_repeated_data(config: RunConfig, dataset: TrainingData, end_position: int) -> None:
    """Log a warning that names the datasets with more epochs than train.warn_epochs."""
    limit = config.train.warn_epochs
    repeated = {} if limit is None else {n: e for n, e in epochs_at(dataset, end_position).items() if e > limit}
    if repeated:
        log.warning(
            "%s: more than train.warn_epochs=%g epochs. Each repetition of the same text improves the model "
            "less (Muennighoff et al. 2023). Add more text, lower the weight in data.mixture, or shorten the run",
            epochs_text(repeated),
            limit,
        )


def reason_of_end(length: RunLength, outcome: str, state: RunState) -> str:
    """Why a run finished or stopped, in one sentence for its record."""
    why = "" if outcome == "finished" else "asked to stop by a signal; "
    early = ", shortened by train.max_minutes" if length.is_shortened(state) else ""
    return f"{why}trained to step {state.step:,} of {length.end_step(state):,}{early}"


def announce_outcome(
    config: RunConfig, dataset: TrainingData, state: RunState, outcome: str, losses: Mapping[str, float]
) -> None:
    """Log what a finished or stopped run has reached, and how many samples were skipped."""
    if state.skipped_samples:
        log.warning(
            "%s of %s samples were skipped: their shards, which the log names, are bad (data.on_bad_shard=skip)",
            f"{state.skipped_samples:,}",
            f"{state.position:,}",
        )
    if outcome == "finished":
        announce_end(config, dataset, state, losses)
    else:
        what = "saved" if state.step else "with nothing to save"
        end = RunLength.of(config).end_step(state)
        log.info("stopped after step %d of %d, %s; run the same command to resume", state.step, end, what)


def announce_end(config: RunConfig, dataset: TrainingData, state: RunState, losses: Mapping[str, float]) -> None:
    """Log what a finished run has reached, and why if it ended before its planned length."""
    length = RunLength.of(config)
    reached = [f"{name} {loss:.4f}" for name, loss in losses.items()]
    log.info(
        "finished: %s",
        ", ".join(
            [
                f"step {state.step:,}",
                f"{state.tokens:,} tokens",
                epochs_text(epochs_at(dataset, state.position)),
                *reached,
            ]
        ),
    )
    if length.is_shortened(state):
        log.info(
            "it ended before its %s steps: train.max_minutes=%g, and it trained for %.1f minutes; a longer run learns "
            "more: set train.max_minutes=null, or more minutes, and start it again",
            f"{length.planned_end_step(state):,}",
            config.train.max_minutes,
            state.train_seconds / 60,
        )


def epochs_text(epochs: Mapping[str, float]) -> str:
    """The epochs as text, such as `files 0.16 epochs, more 16.20 epochs`."""
    return ", ".join(f"{name} {count:.2f} epochs" for name, count in epochs.items())

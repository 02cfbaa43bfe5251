"""The saver of a run: what each checkpoint says of the run, and where saves are recorded."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.checkpoint.resume_point import ResumePoint
from pretrain.checkpoint.save_log import record_save
from pretrain.checkpoint.saver import Saver
from pretrain.outcome.failure import Stage
from pretrain.run.state import RunState
from pretrain.tracking.provenance import describe_checkpoint
from pretrain.training.assembly import Trainer


def build_saver(trainer: Trainer, folder: Path, resume_point: ResumePoint, origin: Mapping[str, Any]) -> Saver:
    """A saver for the levels and the mirror of the run; rank 0 records each save in the run folder."""
    config, dataset = trainer.config, trainer.dataset
    of_run = {**describe_checkpoint(config, dataset.manifest), **origin}

    def describe(state: RunState) -> Mapping[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {**of_run, "dataset_digest": dataset.digest_before(state.position), "saved_at": now}

    return Saver(
        trainer.engine,
        resume_point.levels,
        describe=describe,
        in_background=config.checkpoint.async_,
        group=trainer.groups.saving,
        mirror=resume_point.mirror,
        saved=partial(record_save, folder) if trainer.here.is_main else lambda step, at: None,
        saving=partial(trainer.here.stage, Stage.SAVING),
    )

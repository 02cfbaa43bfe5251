"""The proof of a resume by the last recorded batch, if the batch size has changed since."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from pretrain.distributed.runtime import Runtime
from pretrain.resume.on_start import begin_proof
from pretrain.tracking.metrics_file import METRICS_FILE
from pretrain.training.loop import agree
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import join
from tests.unit.data_pipeline.shards.test_shards import write

SEED = 3
POSITION, SAMPLES = 36, 4
"""The batch of the last recorded step."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint as far as the proof looks at it."""

    step: int
    manifest: dict[str, Any]


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


def said(
    here: Runtime, run: Path, folder: Path, size_now: int, kind: str = "train", step: int = 12, moved: int = 0
) -> list[str]:
    """The log of a resume from the checkpoint of a step that an attempt with batches of `size_now` saved, `moved`
    samples from where it should be."""
    config = run_config()
    groups, dataset = join(here, config), PackedDataset.open(folder, "train")
    stream = train_batches(
        dataset, seed=SEED, global_batch_size=SAMPLES, rank=here.rank, size=here.world_size, position=POSITION
    )
    batch = next(stream)
    stream.close()
    name = agree(batch, True, False, 0, groups.control).batch_hash
    record = {"samples": POSITION + SAMPLES, "batch_samples": SAMPLES, "batch_hash": name}
    if here.rank == 0:
        (run / METRICS_FILE).write_text(json.dumps({"kind": kind, "step": 10, "time": 0.0} | record) + "\n")
    lines, log = Lines(), logging.getLogger("pretrain.resume.on_start")
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    manifest = {
        "config": {"train": {"global_batch_size": size_now}},
        "layout": {"world_size": here.world_size, "tp": 1, "pp": 1},
        "state": {"position": POSITION + SAMPLES + (step - 10) * size_now + moved},
        "files": {},
    }
    begin_proof(run, Saved(step, manifest), dataset, {}, groups, seed=SEED)  # type: ignore[arg-type]
    return lines.seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("size_now", [2, 4, 64])
def test_the_last_recorded_batch_is_read_again_at_any_batch_size(tmp_path: Path, folder: Path, size_now: int) -> None:
    (line,), no_line = run_ranks(said, 2, tmp_path, folder, size_now)
    assert line.startswith("resume verified: the batch of step 10 reads the same (hash ") and no_line == []


def test_without_records_no_proof_is_claimed(tmp_path: Path, folder: Path) -> None:
    (lines,) = run_ranks(said, 1, tmp_path, folder, 64, "validation")
    assert lines == [f"resume not verified: no step up to 12 is recorded in {tmp_path}"]


@pytest.mark.parametrize("step", [9, 10])
def test_a_checkpoint_at_another_sample_is_not_verified(tmp_path: Path, folder: Path, step: int) -> None:
    (lines,) = run_ranks(said, 1, tmp_path, folder, SAMPLES, "train", step, 16)
    at = POSITION + SAMPLES * (step - 9)
    words = (
        f"RESUME NOT VERIFIED: after step {step} the checkpoint is at sample {at + 16}, metrics.jsonl at sample {at}"
    )
    assert [line.partition(": they")[0] for line in lines] == [words]

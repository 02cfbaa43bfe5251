"""The proof of a resume that costs nothing: steps that a killed attempt had recorded are recomputed with equal results.

Without such steps, the last batch before the checkpoint is read again and must have the recorded hash.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from data_pipeline.stream.loader import train_batches
from data_pipeline.stream.mixture import TrainingData
from pretrain.checkpoint.collective import broadcast_result
from pretrain.distributed.groups import ProcessGroups
from pretrain.resume.compare import StepPair, compare_steps, recorded_steps
from pretrain.resume.tolerance import Facts, Tolerance, facts_of_checkpoint, facts_of_last_attempt, tolerance_for
from pretrain.tracking.metrics_file import METRICS_FILE, all_records, records_of_all_attempts
from pretrain.training.loop import Recorder, Values, agree

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint

log = logging.getLogger(__name__)


class ResumeProof:
    """Compares each new train record with that of an earlier attempt; logs the result once, when all are compared."""

    def __init__(self, checkpoint_step: int, earlier: Mapping[int, Values], tolerance: Tolerance) -> None:
        self._checkpoint_step, self._earlier, self._tolerance = checkpoint_step, earlier, tolerance
        self._pairs: list[StepPair] = []
        self._logged = not earlier

    def watching(self, record: Recorder) -> Recorder:
        """A recorder that passes every record on and compares it."""

        def recording(kind: str, step: int, values: Values) -> None:
            record(kind, step, values)
            if kind == "train" and not self._logged:
                self._take(step, values)

        return recording

    def close(self) -> None:
        """Log the result unless it was logged: a run that ends early has repeated only some steps."""
        if self._pairs and not self._logged:
            missing = sum(step > self._pairs[-1].step for step in self._earlier)
            self._log_result(f"; stopped before {missing} more")

    def _log_result(self, ending: str = "") -> None:
        self._logged = True
        comparison = compare_steps(self._pairs, self._checkpoint_step, self._tolerance)
        if comparison.kind == "diverged":
            log.warning("RESUME NOT VERIFIED: this run diverges from the previous attempt: %s", comparison)
        else:
            steps = f"{comparison.num_steps} step{'s' if comparison.num_steps > 1 else ''}"
            log.info("resume verified: %s repeated, %s%s", steps, comparison, ending)

    def _take(self, step: int, values: Values) -> None:
        is_diverged = False
        if step in self._earlier:
            pair = StepPair(step, self._earlier[step], values)
            self._pairs.append(pair)
            is_diverged = compare_steps([pair], self._checkpoint_step, self._tolerance).kind == "diverged"
        if self._pairs and (is_diverged or step >= max(self._earlier)):
            self._log_result()


def has_validation(run_dir: Path, step: int, control: dist.ProcessGroup) -> bool:
    """Whether metrics.jsonl has the validation after this step; rank 0 reads it for all ranks."""

    def is_there() -> bool:
        return any(record["kind"] == "validation" and record["step"] == step for record in all_records(run_dir))

    return broadcast_result("find the validation of", run_dir, control, is_there)


def begin_proof(
    run_dir: Path,
    resumed: "Checkpoint | None",
    dataset: TrainingData,
    now: Facts,
    groups: ProcessGroups,
    *,
    seed: int,
) -> ResumeProof:
    """Start the proof on all ranks, before any record of earlier attempts is overwritten.

    `resumed`: the checkpoint that the run resumes from.
    """
    if resumed is None:
        return ResumeProof(0, {}, Tolerance())
    step = resumed.step
    recorded, unlike = recorded_steps(records_of_all_attempts(run_dir)) if dist.get_rank() == 0 else ({}, [])
    for message in unlike:
        log.warning("%s: %s", run_dir, message)
    contradiction = _contradiction(recorded, step, resumed.manifest["state"]["position"])
    if contradiction:
        log.warning("RESUME NOT VERIFIED: %s", contradiction)
    later = {number: record for number, record in recorded.items() if number > step}
    # After an orderly stop there is no step to repeat.
    last = None if later or contradiction else max(recorded, default=0)
    wanted: list[Any] = [last and recorded[last]]
    dist.broadcast_object_list(wanted, src=0, group=groups.control)
    if wanted[0]:
        _compare_batch(wanted[0], resumed.manifest, dataset, groups, seed)
    elif last == 0 and dist.get_rank() == 0:
        log.warning("resume not verified: no step up to %d is recorded in %s", step, run_dir)
    origins = (facts_of_checkpoint(resumed.manifest), facts_of_last_attempt(run_dir)) if later else ()
    return ResumeProof(step, later, tolerance_for(origins, now, on_gpu=dist.get_backend() == "nccl"))


def _contradiction(recorded: Mapping[int, Mapping[str, Any]], step: int, position: int) -> str | None:
    """A message if the records place the checkpoint of `step` at another position of the data."""
    if step in recorded:
        there = recorded[step]["samples"]
    elif step + 1 in recorded:
        there = recorded[step + 1]["samples"] - recorded[step + 1]["batch_samples"]
    else:
        return None
    if there == position:
        return None
    return (
        f"after step {step} the checkpoint is at sample {position}, {METRICS_FILE} at sample {there}: they are not of "
        "the same run"
    )


def _compare_batch(
    record: Mapping[str, Any], manifest: Mapping[str, Any], dataset: TrainingData, groups: ProcessGroups, seed: int
) -> None:
    """Read the batch of a recorded step again, which proves that order and content of the data are unchanged."""
    samples, replicas = record["batch_samples"], groups.layout.replicas
    # A batch of an earlier size may not divide over the data-parallel ranks: then each reads all of it.
    rank, size = (groups.replica, replicas) if samples % replicas == 0 else (0, 1)
    batches = train_batches(
        dataset, seed=seed, global_batch_size=samples, rank=rank, size=size, position=record["samples"] - samples
    )
    batch = next(batches)
    batches.close()
    counted_here = groups.counts_samples and (size == replicas or groups.replica == 0)
    found = agree(batch, counted_here, False, 0, groups.control).batch_hash
    if dist.get_rank():
        return
    if found == record["batch_hash"]:
        at_save = record["samples"] == manifest["state"]["position"]
        which = "the last batch before the checkpoint" if at_save else f"the batch of step {record['step']}"
        log.info(
            "resume verified: %s reads the same (hash %s); %d files of the checkpoint have their digests",
            which,
            found,
            len(manifest["files"]),
        )
    else:
        log.warning(
            "RESUME NOT VERIFIED: the batch of step %d has hash %s, but %s is recorded: the data or its order changed",
            record["step"],
            found,
            record["batch_hash"],
        )

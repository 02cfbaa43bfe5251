"""What a resumed run can prove at no cost: steps that a killed attempt had recorded come out again as they were, or,
where none are repeated, the last batch before the checkpoint reads the same."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from data_pipeline.stream.loader import train_batches
from data_pipeline.stream.mixture import TrainingData
from pretrain.checkpoint.collective import first_says
from pretrain.distributed.groups import ProcessGroups
from pretrain.resume.compare import Pair, judge, recorded_steps
from pretrain.resume.tolerance import Excuse, Facts, excuse, facts_of_checkpoint, facts_of_last_attempt
from pretrain.tracking.metrics_file import METRICS_FILE, all_records, records_of_all_attempts
from pretrain.training.loop import Recorder, Values, agree

if TYPE_CHECKING:
    from pretrain.checkpoint.store import Checkpoint

log = logging.getLogger(__name__)


class ResumeProof:
    """Compares records as they come with those of the attempts before; one line when all it had are repeated."""

    def __init__(self, checkpoint_step: int, earlier: Mapping[int, Values], excuse: Excuse) -> None:
        self._checkpoint_step, self._earlier, self._excuse = checkpoint_step, earlier, excuse
        self._pairs: list[Pair] = []
        self._said = not earlier

    def watching(self, record: Recorder) -> Recorder:
        """The recorder, seen on the way."""

        def recording(kind: str, step: int, values: Values) -> None:
            record(kind, step, values)
            if kind == "train" and not self._said:
                self._take(step, values)

        return recording

    def close(self) -> None:
        """Say what was found, unless it was said; a run that ends early has repeated a part."""
        if self._pairs and not self._said:
            missing = sum(step > self._pairs[-1].step for step in self._earlier)
            self._say(f"; stopped before {missing} more")

    def _say(self, ending: str = "") -> None:
        self._said = True
        verdict = judge(self._pairs, self._checkpoint_step, self._excuse)
        if verdict.kind == "parts":
            log.warning("RESUME NOT VERIFIED: the run goes on otherwise than the attempt before: %s", verdict)
        else:
            steps = f"{verdict.num_steps} step{'s' if verdict.num_steps > 1 else ''}"
            log.info("resume verified: %s repeated, %s%s", steps, verdict, ending)

    def _take(self, step: int, values: Values) -> None:
        parted = False
        if step in self._earlier:
            pair = Pair(step, self._earlier[step], values)
            self._pairs.append(pair)
            parted = judge([pair], self._checkpoint_step, self._excuse).kind == "parts"
        if self._pairs and (parted or step >= max(self._earlier)):
            self._say()


def has_validation(run_dir: Path, step: int, control: dist.ProcessGroup) -> bool:
    """Whether metrics.jsonl has the validation after this step: on all ranks what rank 0 reads."""

    def is_there() -> bool:
        return any(record["kind"] == "validation" and record["step"] == step for record in all_records(run_dir))

    return first_says("find the validation of", run_dir, control, is_there)


def begin_proof(
    run_dir: Path,
    resumed: "Checkpoint | None",
    dataset: TrainingData,
    now: Facts,
    groups: ProcessGroups,
    *,
    seed: int,
) -> ResumeProof:
    """On all ranks, before anything of the attempt before is overwritten; `resumed`: where the run goes on from."""
    if resumed is None:
        return ResumeProof(0, {}, Excuse())
    step = resumed.step
    recorded, unlike = recorded_steps(records_of_all_attempts(run_dir)) if dist.get_rank() == 0 else ({}, [])
    for words in unlike:
        log.warning("%s: %s", run_dir, words)
    contradiction = _contradiction(recorded, step, resumed.manifest["state"]["position"])
    if contradiction:
        log.warning("RESUME NOT VERIFIED: %s", contradiction)
    later = {number: record for number, record in recorded.items() if number > step}
    # A run that was stopped in good order left nothing to repeat.
    placed = (number for number, record in recorded.items() if "batch_samples" in record)
    last = None if later or contradiction else max(placed, default=0)
    wanted: list[Any] = [last and recorded[last]]
    dist.broadcast_object_list(wanted, src=0, group=groups.control)
    if wanted[0]:
        _compare_batch(wanted[0], resumed.manifest, dataset, groups, seed)
    elif last == 0 and dist.get_rank() == 0:
        log.warning("resume not verified: no step up to %d is recorded with its batch in %s", step, run_dir)
    origins = (facts_of_checkpoint(resumed.manifest), facts_of_last_attempt(run_dir)) if later else ()
    return ResumeProof(step, later, excuse(origins, now, on_gpu=dist.get_backend() == "nccl"))


def _contradiction(recorded: Mapping[int, Mapping[str, Any]], step: int, position: int) -> str | None:
    """How the record says that the checkpoint of `step` stands at another position of the data."""
    record, following = recorded.get(step, {}), recorded.get(step + 1, {})
    if "samples" in record:
        there = record["samples"]
    elif "samples" in following and "batch_samples" in following:
        there = following["samples"] - following["batch_samples"]
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
    """Read the batch of a recorded step again: order and content of the data are what they were."""
    samples, dp = record["batch_samples"], groups.layout.dp
    # A batch size that was changed need not divide over the ranks there are now: then one reads all.
    rank, size = (groups.dp_rank, dp) if samples % dp == 0 else (0, 1)
    batches = train_batches(
        dataset, seed=seed, global_batch_size=samples, rank=rank, size=size, position=record["samples"] - samples
    )
    batch = next(batches)
    batches.close()
    counted_here = groups.tp_rank == groups.pp_rank == 0 and (size == dp or groups.dp_rank == 0)
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
            "RESUME NOT VERIFIED: the batch of step %d has hash %s, recorded was %s: the data or its order has changed",
            record["step"],
            found,
            record["batch_hash"],
        )

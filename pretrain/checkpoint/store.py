"""Checkpoints of a run: saved whole or not at all, found again, checked, pruned.

<run>/checkpoints/step-00000500/
    manifest.json     what it is: step, config, versions, layout, digests of all other files (written last)
    tensors.json      which part of which tensor lies where
    __0_0.distcp      tensors of rank 0, and so on
    random-00000.safetensors
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch.distributed import checkpoint as dcp

from data_pipeline.durable import sync_folder, write_durably
from pretrain.checkpoint.files import JsonIndexReader, JsonIndexWriter
from pretrain.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    digest_of,
    file_faults,
    read_manifest,
    remove_folder,
)
from pretrain.checkpoint.tensors import state_dict_of
from pretrain.config.errors import RunError
from pretrain.engine.interface import Engine
from pretrain.layout.groups import ProcessGroups
from pretrain.layout.random_state import random_states, restore_random_states
from pretrain.run_state import RunState

ALMOST_NOTHING = 1 << 20
"""Bytes: a disk with less is called full."""

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["state"]["step"])


class CheckpointStore:
    """The checkpoints in one run folder; `save`, `newest` and `restore` are called on all ranks together."""

    def __init__(self, run_dir: Path, *, groups: ProcessGroups, keep_last: int, keep_every: int) -> None:
        self.folder, self.layout = run_dir / "checkpoints", asdict(groups.layout)
        self.control, self.keep_last, self.keep_every = groups.control, keep_last, keep_every
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def save(self, engine: Engine, state: RunState, description: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `state.step`; raises RunError on every rank if any rank could not write."""
        final = self.folder / f"step-{state.step:08d}"
        partial = final.with_name(final.name + ".partial")
        self._together("prepare", lambda: self._make_place(partial) if self.rank == 0 else None)
        self._together("write", lambda: self._write_own_part(partial, engine))
        digests = self._together("check", lambda: self._digests_of_own_files(partial))
        manifest = {
            "format_version": FORMAT_VERSION,
            "state": state.to_json(),
            "counters": engine.counters(),
            "layout": self.layout,
            "files": {name: digest for part in digests for name, digest in part.items()},
            **description,
        }
        self._together("complete", lambda: self._complete(partial, final, manifest) if self.rank == 0 else None)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; damaged ones are named loudly and passed over."""
        found: list[Checkpoint | None] = [None]
        if self.rank == 0:
            found = [newest_whole(self.folder)]
        dist.broadcast_object_list(found, src=0, group=self.control)
        return found[0]

    def restore(self, checkpoint: Checkpoint, engine: Engine) -> RunState:
        """Load parameters, optimizer, counters and random states; returns the state to go on from."""
        state_dict = state_dict_of(engine.state_shards())
        dcp.load(state_dict, storage_reader=JsonIndexReader(checkpoint.folder), process_group=self.control)
        engine.restored(checkpoint.manifest["counters"])
        if checkpoint.manifest["layout"] == self.layout:
            restore_random_states(load_file(checkpoint.folder / _random_file(self.rank)))
        elif self.rank == 0:
            log.warning(
                "%s was saved by %s, now there are %s: random states for dropout start anew",
                checkpoint.folder,
                _say(checkpoint.manifest["layout"]),
                _say(self.layout),
            )
        return RunState.from_json(checkpoint.manifest["state"])

    def restore_weights(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Load the weights alone; the optimizer stays as it is."""
        weights = state_dict_of(engine.state_shards(weights_only=True))
        dcp.load(weights, storage_reader=JsonIndexReader(checkpoint.folder), process_group=self.control)
        engine.restored(engine.counters())

    def last_name(self) -> str:
        """The newest complete checkpoint by its name, or `none`."""
        return str(max(self._complete_ones(), default="none"))

    def _complete_ones(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "")

    def _write_own_part(self, partial: Path, engine: Engine) -> None:
        writer = JsonIndexWriter(partial)
        dcp.save(state_dict_of(engine.state_shards()), storage_writer=writer, process_group=self.control)
        write_durably(partial / _random_file(self.rank), safetensors_bytes(random_states()))

    def _make_place(self, partial: Path) -> None:
        # What a killed or failed save or deletion left; before writing, as the disk may be full of it.
        for leftover in [*self.folder.glob("step-*.partial"), *self.folder.glob("step-*.deleting")]:
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)

    def _digests_of_own_files(self, partial: Path) -> dict[str, Any]:
        names = [path.name for path in partial.glob(f"__{self.rank}_*")] + [_random_file(self.rank)]
        if self.rank == 0:
            names.append("tensors.json")
        return {name: digest_of(partial / name) for name in sorted(names)}

    def _complete(self, partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
        write_durably(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        if final.exists():  # the same step saved again, after a resume from an older one
            remove_folder(final)
        partial.rename(final)
        sync_folder(self.folder)
        self._prune()

    def _prune(self) -> None:
        for path in self._complete_ones()[: -self.keep_last]:
            if not (self.keep_every and int(path.name.removeprefix("step-")) % self.keep_every == 0):
                remove_folder(path)

    def _together(self, what: str, action: Callable[[], Result]) -> list[Result]:
        """Run `action` on all ranks; every rank learns of every failure, so that none waits for one that failed."""
        result, fault = None, None
        try:
            result = action()
        except (OSError, dcp.CheckpointException) as error:
            # Torch's writer does not say why a write failed.
            full = self.folder.exists() and shutil.disk_usage(self.folder).free < ALMOST_NOTHING
            fault = f"rank {self.rank}: {'no space left on the disk' if full else _first_cause(error)}"
        outcomes: list[Any] = [None] * self.world_size
        dist.all_gather_object(outcomes, (fault, result), group=self.control)
        faults = [fault for fault, _ in outcomes if fault]
        if faults:
            raise RunError(
                f"could not {what} a checkpoint in {self.folder}: {faults[0]}; earlier checkpoints are untouched, "
                "make room or mend the disk and run the same command again"
            )
        return [result for _, result in outcomes]


def newest_whole(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder` whose files are all as its manifest says."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if path.suffix:
            continue  # .partial, .deleting
        try:
            return read_checkpoint(path)
        except RunError as error:
            log.warning("%s; trying the one before", error)
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint, its files checked against its manifest; raises RunError naming what is wrong."""
    manifest = read_manifest(path)
    for fault in file_faults(path, manifest["files"], digests=True):
        raise RunError(fault)
    return Checkpoint(path, manifest)


def _say(layout: Mapping[str, int]) -> str:
    return f"{layout['world_size']} process(es) as tp{layout['tp']} pp{layout['pp']}"


def _random_file(rank: int) -> str:
    return f"random-{rank:05d}.safetensors"


def _first_cause(error: BaseException) -> str:
    """The plain reason in what DCP wraps."""
    if isinstance(error, dcp.CheckpointException):
        failures = [failure[0] if isinstance(failure, tuple) else failure for failure in error.failures.values()]
        return str(failures[0])
    return str(error)

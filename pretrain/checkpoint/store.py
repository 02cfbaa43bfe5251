"""The checkpoints in one folder: saved whole or not at all, found again, checked, pruned.

<folder>/step-00000500/
    manifest.json     what it is: step, config, versions, layout, digests of all files and of itself (written last)
    tensors.json      which part of which tensor lies where
    __0_0.distcp      tensors of rank 0, and so on
    random-00000.safetensors
"""

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from data_pipeline.storage.atomic_write import sync_folder, write_durably
from pretrain.checkpoint.collective import all_say, first_says, holds_on_all, together
from pretrain.checkpoint.files import JsonIndexReader, merge_indices, parts_of_ranks, write_tensors
from pretrain.checkpoint.index import index_faults, read_index
from pretrain.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    CheckpointDeleted,
    digest_of,
    file_faults,
    read_manifest,
    remove_folder,
    remove_leftover,
    sealed,
    step_of,
)
from pretrain.checkpoint.retention import Keeping
from pretrain.checkpoint.tensors import Chunk, chunks_of, own_chunks, state_dict_of
from pretrain.config.errors import RunError
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.random_state import random_states, restore_random_states
from pretrain.engine.interface import Engine
from pretrain.run.state import RunState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["state"]["step"])


@dataclass(frozen=True)
class Snapshot:
    """What one rank saves of a step: small things copied, tensors where they are, until the next update."""

    step: int
    chunks: list[Chunk]
    random_states: bytes
    manifest: Mapping[str, Any]
    """All but the digests of the files."""

    @property
    def num_bytes(self) -> int:
        return sum(chunk.data.nbytes for chunk in self.chunks)


class CheckpointStore:
    """The checkpoints in one folder; its methods are called on all ranks together.

    A shared folder is completed by rank 0. Where each node has a folder on a disk of its own (`node`: this rank's
    number on it, and how many ranks it has), the first rank of the node completes it, and each rank writes all that it
    holds, so that the same layout goes on without the disks of other nodes.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        groups: ProcessGroups,
        keep_last: int,
        keep_every: int = 0,
        node: tuple[int, int] | None = None,
        still_held: Callable[[], None] = lambda: None,
    ) -> None:
        """`still_held`: raises RunError, before a save, where the folder is not the run's any more."""
        self.folder, self.layout = run_dir / "checkpoints", asdict(groups.layout)
        self.control, self.keeping = groups.control, Keeping(keep_last, keep_every)
        self.still_held = still_held
        self.rank, self.on_node = dist.get_rank(), node is not None
        self.place, self.sharing = node or (self.rank, dist.get_world_size())

    def save(self, engine: Engine, state: RunState, description: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `state.step`; raises RunError on every rank if any rank could not write."""
        return self.write(self.snapshot(engine, state, description), self.control)

    def snapshot(self, engine: Engine, state: RunState, description: Mapping[str, Any]) -> Snapshot:
        """What `write` takes: tensors are not copied, so it is good until the engine's next update."""
        chunks = chain.from_iterable(map(chunks_of if self.on_node else own_chunks, engine.state_shards()))
        manifest = {
            "format_version": FORMAT_VERSION,
            "state": state.to_json(),
            "counters": engine.counters(),
            "layout": self.layout,
            **description,
        }
        return Snapshot(state.step, list(chunks), safetensors_bytes(random_states()), manifest)

    def write(
        self, snapshot: Snapshot, group: dist.ProcessGroup, tensors_read: Callable[[], None] = lambda: None
    ) -> Path:
        """Write a snapshot; `tensors_read` is called, whatever happens, once its tensors are not needed any more."""
        final = self.folder / f"step-{snapshot.step:08d}"
        partial = final.with_name(final.name + ".partial")
        folder, completes = self.folder, self.place == 0
        try:
            # One name for what all ranks write now: after a crash a node may hold another save of the same step.
            save_id = first_says(
                "begin", folder, group, lambda: self._make_place(partial) if completes else secrets.token_hex(8)
            )
            together("write", folder, group, lambda: self._write_part(partial, snapshot, tensors_read))
        finally:
            tensors_read()
        manifest = {**snapshot.manifest, "save_id": save_id}
        # In two steps: no node shows the checkpoint before all have everything on their disks.
        together("describe", folder, group, lambda: self._describe(partial, manifest) if completes else None)
        together("complete", folder, group, lambda: self._complete(partial, final) if completes else None)
        if completes:
            self._prune(final.name)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; damaged ones are logged and passed over."""
        for name in self.names():
            try:
                return self.checked(name)
            except RunError as error:
                pass_over(error)
        return None

    def names(self) -> list[str]:
        """Names of the complete checkpoints that all nodes have, the newest first."""
        listed = [path.name for path in complete_ones(self.folder)] if self.on_node or self.rank == 0 else []
        if not self.on_node:
            return sorted(first_says("list", self.folder, self.control, lambda: listed), reverse=True)
        seen = all_say("list", self.folder, self.control, lambda: listed)
        return sorted(set(seen[0]).intersection(*seen), reverse=True)

    def checked(self, name: str) -> Checkpoint:
        """A checkpoint, its files read by all ranks together; raises RunError on all of them if it is damaged."""
        path = self.folder / name
        try:
            manifest = together("read", self.folder, self.control, lambda: read_manifest(path))
            save_id, files = manifest.get("save_id"), manifest["files"]
            rank_0_has = first_says("read", self.folder, self.control, lambda: save_id)

            def check_share() -> None:
                if save_id != rank_0_has:
                    raise RunError(f"{path} is not the same save on all nodes")
                refuse_damage(path, share_of(files, self.place, self.sharing))

            together("read", self.folder, self.control, check_share)
            if not self.on_node:  # a node's index has the parts that lie there
                main = self.rank == 0
                together("read", self.folder, self.control, lambda: refuse_holes(path, files) if main else None)
        except RunError:
            self.keeping.know(name, whole=False)
            raise
        self.keeping.know(name, whole=True)
        return Checkpoint(path, manifest)

    def serves(self, checkpoint: Checkpoint, engine: Engine) -> bool:
        """Whether each rank finds all it needs on its node."""
        layout = checkpoint.manifest["layout"]
        everything = sum(name.endswith(".distcp") for name in checkpoint.manifest["files"]) == layout["world_size"]
        # Inside of what all ranks do together: one rank alone may find its index unreadable.
        has_own = lambda: everything or self._holds_own_chunks(checkpoint, engine)  # noqa: E731
        return holds_on_all("read", self.folder, self.control, has_own)

    def _holds_own_chunks(self, checkpoint: Checkpoint, engine: Engine) -> bool:
        places = {
            (tensor.name, chunk.offsets, chunk.sizes)
            for tensor in read_index(checkpoint.folder).values()
            for chunk in tensor.chunks
        }
        wanted = chain.from_iterable(map(chunks_of, engine.state_shards()))
        return all((chunk.name, chunk.offsets, chunk.sizes) in places for chunk in wanted)

    def restore(self, checkpoint: Checkpoint, engine: Engine) -> RunState:
        """Load parameters, optimizer, counters and random states; returns the state to go on from."""
        state_dict = state_dict_of(engine.state_shards())
        is_same_layout = checkpoint.manifest["layout"] == self.layout
        with self._reading(checkpoint):
            self._load(checkpoint, state_dict)
            engine.load_counters(checkpoint.manifest["counters"])
            if is_same_layout:
                random = checkpoint.folder / _random_file(self.rank)
                together("read", self.folder, self.control, lambda: restore_random_states(load_file(random)))
        if not is_same_layout and self.rank == 0:
            log.warning(
                "%s was saved by %s, now there are %s: random states for dropout start anew",
                checkpoint.folder,
                _say(checkpoint.manifest["layout"]),
                _say(self.layout),
            )
        return RunState.from_json(checkpoint.manifest["state"])

    def restore_weights(
        self, engine: Engine, found: Checkpoint | None, find: Callable[[], Checkpoint], *, digests: bool = False
    ) -> tuple[Checkpoint, str]:
        """Load the weights alone; the optimizer stays as it is. Returns of which checkpoint, and its manifest's digest.

        Rank 0 says which: what it has `found`, or, where there is none or a live run deletes that meanwhile, what it
        finds now. `digests`: compare the files with their digests first, each rank a share of them.
        """
        chosen = first_says("find", self.folder, self.control, lambda: None if self.rank else found or find())
        assert chosen is not None
        weights = state_dict_of(engine.state_shards(weights_only=True))
        try:
            with self._reading(chosen):
                if digests:
                    share = share_of(chosen.manifest["files"], dist.get_rank(), dist.get_world_size())
                    together("read", self.folder, self.control, lambda: refuse_damage(chosen.folder, share))
                digest = self._load(chosen, weights)
        except CheckpointDeleted:
            return self.restore_weights(engine, None, find, digests=digests)
        engine.load_counters(engine.counters())
        return chosen, digest

    def _load(self, checkpoint: Checkpoint, state_dict: dict[str, Any]) -> str:
        """Fill the tensors; returns the digest of the manifest."""
        reader, manifest = JsonIndexReader(checkpoint.folder), checkpoint.folder / MANIFEST
        digest = first_says("read", self.folder, self.control, lambda: reader.tensors and digest_of(manifest)["sha256"])
        dcp.load(state_dict, storage_reader=reader, process_group=self.control)
        return str(digest)

    @contextlib.contextmanager
    def _reading(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Around what all ranks read together; raises CheckpointDeleted on all where it is gone from any."""
        try:
            yield
        except (RunError, CheckpointException) as error:
            if not holds_on_all("read", self.folder, self.control, checkpoint.folder.exists):
                raise CheckpointDeleted(checkpoint.folder) from None
            if isinstance(error, CheckpointException):  # which is no Exception: nobody would tell the other ranks
                raise RuntimeError(f"{checkpoint.folder}: {error}") from error
            raise

    def last_name(self) -> str:
        """The newest complete checkpoint by its name, or `none`."""
        return str(max(complete_ones(self.folder), default="none"))

    def _make_place(self, partial: Path) -> str:
        self.still_held()
        # What a killed or failed save or deletion left; before writing, as the disk may be full of it.
        for leftover in [*self.folder.glob("step-*.partial"), *self.folder.glob("step-*.deleting")]:
            remove_leftover(leftover)
        partial.mkdir(parents=True)
        return secrets.token_hex(8)

    def _write_part(self, partial: Path, snapshot: Snapshot, read: Callable[[], None]) -> None:
        files = write_tensors(partial, self.rank, snapshot.chunks, read)
        random = partial / _random_file(self.rank)
        write_durably(random, snapshot.random_states)
        # By the folder, as the index goes: to send them would cost every rank memory for all ranks.
        digests = {**files, random.name: digest_of(random)}
        (partial / f"digests-{self.rank:05d}.json").write_text(json.dumps(digests))

    def _describe(self, partial: Path, manifest: Mapping[str, Any]) -> None:
        here: dict[str, Any] = {}
        for path in parts_of_ranks(partial, "digests", self.sharing):
            here |= json.loads(path.read_bytes())
            path.unlink()
        index = merge_indices(partial, self.sharing)
        content = {**manifest, "files": {**here, index: digest_of(partial / index)}}
        write_durably(partial / MANIFEST, sealed(content))

    def _complete(self, partial: Path, final: Path) -> None:
        if os.path.lexists(final):  # the same step saved again, after a resume from an older one
            remove_folder(final)
        partial.rename(final)
        sync_folder(self.folder)

    def _prune(self, saved: str) -> None:
        """Make room after a save; what cannot be deleted costs its room and not the save."""
        self.keeping.know(saved, whole=True)
        names = [path.name for path in complete_ones(self.folder)]
        for name in self.keeping.outdated(names, saved, lambda name: has_its_files(self.folder / name)):
            try:
                remove_folder(self.folder / name)
            except OSError as error:
                log.warning("%s cannot be deleted: %s", self.folder / name, error.strerror or error)


@dataclass(frozen=True)
class Search:
    """What looking for the newest whole checkpoint gave."""

    found: tuple[CheckpointStore, Checkpoint] | None
    passed_over: Sequence[RunError]
    """What is wrong with each checkpoint that was looked at before."""


def newest_of(stores: Sequence[CheckpointStore], engine: Engine) -> Search:
    """The newest whole checkpoint that serves these ranks, wherever it lies; of two of a step, the later store's."""
    candidates = [(name, number, store) for number, store in enumerate(stores) for name in store.names()]
    passed_over: list[RunError] = []
    for name, _, store in sorted(candidates, key=lambda candidate: candidate[:2], reverse=True):
        try:
            checkpoint = store.checked(name)
            if not store.serves(checkpoint, engine):
                raise RunError(f"{checkpoint.folder}: parts for the new layout lie on other nodes")
        except RunError as error:
            pass_over(error)
            passed_over.append(error)
        else:
            return Search((store, checkpoint), passed_over)
    return Search(None, passed_over)


def pass_over(error: RunError) -> None:
    """Log, on rank 0, why a checkpoint is not taken."""
    if dist.get_rank() == 0:
        log.warning("%s; trying the one before", error.one_line)


def complete_ones(folder: Path) -> list[Path]:
    """Folders of complete checkpoints, the oldest first."""
    named = (path for path in folder.glob("step-*") if step_of(path) is not None)  # no .partial, no .deleting
    return sorted(path for path in named if path.is_symlink() or path.is_dir())


def has_its_files(folder: Path) -> bool:
    """Whether a checkpoint's manifest is whole and its files have their sizes; their content is not read."""
    try:
        return not any(file_faults(folder, read_manifest(folder)["files"], digests=False))
    except RunError:
        return False


def newest_whole(folder: Path, *, digests: bool = True) -> Checkpoint | None:
    """The newest checkpoint in `folder` whose files are all as its manifest says; without `digests` by their sizes."""
    paths = complete_ones(folder)
    while paths:
        path = paths.pop()
        try:
            return read_checkpoint(path, digests=digests)
        except RunError as error:
            if os.path.lexists(path):
                log.warning("%s; trying the one before", error.one_line)
            else:
                paths = complete_ones(folder)  # a live run has deleted it, for a newer one
    return None


def read_checkpoint(path: Path, *, digests: bool = True) -> Checkpoint:
    """Open one checkpoint, its files checked against its manifest; raises RunError naming what is wrong."""
    manifest = read_manifest(path)
    refuse_damage(path, manifest["files"], digests=digests)
    refuse_holes(path, manifest["files"])
    return Checkpoint(path, manifest)


def share_of(files: Mapping[str, Any], place: int, sharing: int) -> dict[str, Any]:
    """The files that one of `sharing` ranks reads, so that together they read each once."""
    return dict(list(files.items())[place::sharing])


def refuse_damage(path: Path, files: Mapping[str, Mapping[str, Any]], *, digests: bool = True) -> None:
    """Raise RunError naming the first file that is not as the manifest says."""
    for fault in file_faults(path, files, digests=digests):
        raise RunError(fault)


def refuse_holes(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise RunError unless the index finds every element of every tensor in the checkpoint's own files.

    DCP leaves as it was what the index leaves out.
    """
    sizes = {name: record["bytes"] for name, record in files.items()}
    for fault in index_faults(path, read_index(path), sizes):
        raise RunError(fault)


def _say(layout: Mapping[str, int]) -> str:
    return f"{layout['world_size']} process(es) as tp{layout['tp']} pp{layout['pp']}"


def _random_file(rank: int) -> str:
    return f"random-{rank:05d}.safetensors"

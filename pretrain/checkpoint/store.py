"""The checkpoints in one folder: saved as a whole or not at all, found, checked and pruned.

<folder>/step-00000500/
    manifest.json     what it is: step, config, versions, layout, digests of all files and of itself (written last)
    tensors.json      which file holds which part of which tensor
    __0_0.distcp      tensors of rank 0, and so on
    random-00000.safetensors
"""

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import StorageReader
from torch.distributed.checkpoint.api import CheckpointException

from data_pipeline.storage.atomic_write import sync_folder, write_durably
from pretrain.checkpoint.collective import all_gather_results, all_true, broadcast_result, run_on_all_ranks
from pretrain.checkpoint.files import files_of_ranks, merge_indices, write_tensors
from pretrain.checkpoint.index import read_index
from pretrain.checkpoint.manifest import (
    MANIFEST,
    CheckpointDeleted,
    digest_of,
    read_manifest,
    remove_folder,
    remove_leftover,
    sealed,
)
from pretrain.checkpoint.on_disk import Checkpoint, complete_ones, has_its_files, refuse_damage, refuse_holes, share_of
from pretrain.checkpoint.retention import Retention
from pretrain.checkpoint.snapshot import Snapshot, take_snapshot
from pretrain.checkpoint.tensors import chunks_of, state_dict_of
from pretrain.config.errors import RunError
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.random_state import restore_random_states
from pretrain.engine.interface import Engine
from pretrain.run.state import RunState

log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints in one folder; its methods are called on all ranks together.

    Rank 0 completes a checkpoint in a shared folder. If each node has a folder on its own disk (`node`: this rank's
    number on the node, and the ranks of the node), the first rank of each node completes it there, and each rank writes
    everything it holds. The same layout can then resume without the disks of other nodes.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        groups: ProcessGroups,
        keep_last: int,
        keep_every: int = 0,
        keep_steps: Collection[int] = (),
        node: tuple[int, int] | None = None,
        check_ownership: Callable[[], None] = lambda: None,
    ) -> None:
        """`check_ownership` is called before each save; it raises RunError if another run has the folder."""
        self.folder, self.layout = run_dir / "checkpoints", asdict(groups.layout)
        self.control, self.retention = groups.control, Retention(keep_last, keep_every, keep_steps)
        self.check_ownership = check_ownership
        self.rank, self.on_node = dist.get_rank(), node is not None
        self.place, self.sharing = node or (self.rank, dist.get_world_size())

    def save(self, engine: Engine, state: RunState, description: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `state.step`; raises RunError on every rank if any rank could not write."""
        return self.write(self.snapshot(engine, state, description), self.control)

    def snapshot(self, engine: Engine, state: RunState, description: Mapping[str, Any]) -> Snapshot:
        """A snapshot for `write`. Tensors are not copied: it is valid until the engine's next update."""
        return take_snapshot(engine, state, self.layout, description, all_copies=self.on_node)

    def write(
        self, snapshot: Snapshot, group: dist.ProcessGroup, tensors_read: Callable[[], None] = lambda: None
    ) -> Path:
        """Write a snapshot; `tensors_read` is called in any case once its tensors are no longer needed."""
        final = self.folder / f"step-{snapshot.step:08d}"
        partial = final.with_name(final.name + ".partial")
        folder, completes = self.folder, self.place == 0
        try:
            # One id for what all ranks write now: after a crash a node may hold another save of the same step.
            save_id = broadcast_result(
                "begin", folder, group, lambda: self._make_place(partial) if completes else secrets.token_hex(8)
            )
            run_on_all_ranks("write", folder, group, lambda: self._write_part(partial, snapshot, tensors_read))
        finally:
            tensors_read()
        manifest = {**snapshot.manifest, "save_id": save_id}
        # In two steps: no node shows the checkpoint before all have everything on their disks.
        run_on_all_ranks("describe", folder, group, lambda: self._describe(partial, manifest) if completes else None)
        run_on_all_ranks("complete", folder, group, lambda: self._complete(partial, final) if completes else None)
        if completes:
            self._prune(final.name)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; damaged ones are logged and skipped."""
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
            return sorted(broadcast_result("list", self.folder, self.control, lambda: listed), reverse=True)
        seen = all_gather_results("list", self.folder, self.control, lambda: listed)
        return sorted(set(seen[0]).intersection(*seen), reverse=True)

    def checked(self, name: str) -> Checkpoint:
        """A checkpoint whose files all ranks together have read; raises RunError on all ranks if it is damaged."""
        path = self.folder / name
        try:
            manifest = run_on_all_ranks("read", self.folder, self.control, lambda: read_manifest(path))
            save_id, files = manifest.get("save_id"), manifest["files"]
            rank_0_has = broadcast_result("read", self.folder, self.control, lambda: save_id)

            def check_share() -> None:
                if save_id != rank_0_has:
                    raise RunError(f"{path} is not the same save on all nodes")
                refuse_damage(path, share_of(files, self.place, self.sharing))

            run_on_all_ranks("read", self.folder, self.control, check_share)
            if not self.on_node:  # the index of a node has only the parts on that node
                main = self.rank == 0
                run_on_all_ranks("read", self.folder, self.control, lambda: refuse_holes(path, files) if main else None)
        except RunError:
            self.retention.mark(name, whole=False)
            raise
        self.retention.mark(name, whole=True)
        return Checkpoint(path, manifest)

    def is_loadable_here(self, checkpoint: Checkpoint, engine: Engine) -> bool:
        """Whether each rank finds everything it needs on its node."""
        layout = checkpoint.manifest["layout"]
        everything = sum(name.endswith(".distcp") for name in checkpoint.manifest["files"]) == layout["world_size"]
        # Within the collective call: a single rank may find its index unreadable.
        has_own = lambda: everything or self._holds_own_chunks(checkpoint, engine)  # noqa: E731
        return all_true("read", self.folder, self.control, has_own)

    def _holds_own_chunks(self, checkpoint: Checkpoint, engine: Engine) -> bool:
        places = {
            (tensor.name, chunk.offsets, chunk.sizes)
            for tensor in read_index(checkpoint.folder).values()
            for chunk in tensor.chunks
        }
        wanted = chain.from_iterable(map(chunks_of, engine.state_shards()))
        return all((chunk.name, chunk.offsets, chunk.sizes) in places for chunk in wanted)

    def restore(self, checkpoint: Checkpoint, engine: Engine) -> RunState:
        """Load parameters, optimizer, counters and random states; returns the state to resume from."""
        state_dict = state_dict_of(engine.state_shards())
        is_same_layout = checkpoint.manifest["layout"] == self.layout
        with self._reading(checkpoint):
            self._load(checkpoint, state_dict)
            engine.load_counters(checkpoint.manifest["counters"])
            if is_same_layout:
                random = checkpoint.folder / _random_file(self.rank)
                run_on_all_ranks("read", self.folder, self.control, lambda: restore_random_states(load_file(random)))
        if not is_same_layout and self.rank == 0:
            log.warning(
                "%s was saved by %s, now there are %s: the random states of dropout start again",
                checkpoint.folder,
                _say(checkpoint.manifest["layout"]),
                _say(self.layout),
            )
        return RunState.from_json(checkpoint.manifest["state"])

    def restore_weights(
        self, engine: Engine, found: Checkpoint | None, find: Callable[[], Checkpoint], *, digests: bool = False
    ) -> tuple[Checkpoint, str]:
        """Load only the weights; the optimizer is unchanged. Returns the checkpoint and the digest of its manifest.

        Rank 0 chooses the checkpoint: `found`, or what `find` returns if that is None or a live run deletes it. With
        `digests`, the files are first compared with their digests, each rank a share of them.
        """
        chosen = broadcast_result("find", self.folder, self.control, lambda: None if self.rank else found or find())
        assert chosen is not None
        weights = state_dict_of(engine.state_shards(weights_only=True))
        try:
            with self._reading(chosen):
                if digests:
                    share = share_of(chosen.manifest["files"], dist.get_rank(), dist.get_world_size())
                    run_on_all_ranks("read", self.folder, self.control, lambda: refuse_damage(chosen.folder, share))
                digest = self._load(chosen, weights)
        except CheckpointDeleted:
            return self.restore_weights(engine, None, find, digests=digests)
        engine.load_counters(engine.counters())
        return chosen, digest

    def _load(self, checkpoint: Checkpoint, state_dict: dict[str, Any]) -> str:
        """Fill the tensors; returns the digest of the manifest."""
        readers: list[StorageReader] = []
        run_on_all_ranks("read", self.folder, self.control, lambda: readers.append(checkpoint.reader()))
        digest = broadcast_result("read", self.folder, self.control, lambda: checkpoint.digest)
        dcp.load(state_dict, storage_reader=readers[0], process_group=self.control)
        return str(digest)

    @contextlib.contextmanager
    def _reading(self, checkpoint: Checkpoint) -> Iterator[None]:
        """A context in which all ranks read; raises CheckpointDeleted on all ranks if any finds the folder gone."""
        try:
            yield
        except (RunError, CheckpointException) as error:
            if not all_true("read", self.folder, self.control, checkpoint.folder.exists):
                raise CheckpointDeleted(checkpoint.folder) from None
            if isinstance(error, CheckpointException):  # not an Exception: the failure would not reach other ranks
                raise RuntimeError(f"{checkpoint.folder}: {error}") from error
            raise

    def last_name(self) -> str:
        """The newest complete checkpoint by its name, or `none`."""
        return str(max(complete_ones(self.folder), default="none"))

    def _make_place(self, partial: Path) -> str:
        self.check_ownership()
        # Leftovers of a killed or failed save or deletion go first: they may fill the disk.
        for leftover in [*self.folder.glob("step-*.partial"), *self.folder.glob("step-*.deleting")]:
            remove_leftover(leftover)
        partial.mkdir(parents=True)
        return secrets.token_hex(8)

    def _write_part(self, partial: Path, snapshot: Snapshot, read: Callable[[], None]) -> None:
        files = write_tensors(partial, self.rank, snapshot.chunks, read)
        random = partial / _random_file(self.rank)
        write_durably(random, snapshot.random_states)
        # In a file, like the index: sending them would cost every rank memory for all ranks.
        digests = {**files, random.name: digest_of(random)}
        (partial / f"digests-{self.rank:05d}.json").write_text(json.dumps(digests))

    def _describe(self, partial: Path, manifest: Mapping[str, Any]) -> None:
        here: dict[str, Any] = {}
        for path in files_of_ranks(partial, "digests", self.sharing):
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
        """Delete outdated checkpoints after a save; one that cannot be deleted only costs its space."""
        self.retention.mark(saved, whole=True)
        names = [path.name for path in complete_ones(self.folder)]
        for name in self.retention.outdated(names, saved, lambda name: has_its_files(self.folder / name)):
            try:
                remove_folder(self.folder / name)
            except OSError as error:
                log.warning("%s cannot be deleted: %s", self.folder / name, error.strerror or error)


def pass_over(error: RunError) -> None:
    """Log, on rank 0, why a checkpoint is not taken."""
    if dist.get_rank() == 0:
        log.warning("%s; trying the one before", error.one_line)


def _say(layout: Mapping[str, int]) -> str:
    return f"{layout['world_size']} process(es) as tp{layout['tp']} pp{layout['pp']}"


def _random_file(rank: int) -> str:
    return f"random-{rank:05d}.safetensors"

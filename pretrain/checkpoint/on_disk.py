"""The checkpoints in a folder, as one process finds and checks them."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint.index import index_faults, read_index
from pretrain.checkpoint.manifest import MANIFEST, digest_of, file_faults, read_manifest, step_of
from pretrain.config.errors import RunError

if TYPE_CHECKING:
    from torch.distributed.checkpoint import StorageReader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["state"]["step"])

    @property
    def digest(self) -> str:
        """The SHA-256 of its manifest file."""
        return str(digest_of(self.folder / MANIFEST)["sha256"])

    def reader(self) -> "StorageReader":
        """A reader of its tensors for torch.distributed.checkpoint."""
        from pretrain.checkpoint.files import JsonIndexReader

        reader = JsonIndexReader(self.folder)
        assert reader.tensors is not None  # read now: a missing index is then one plain error
        return reader


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

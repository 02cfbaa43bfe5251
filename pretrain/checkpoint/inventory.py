"""The checkpoints of a run as a reader finds them: whole, damaged, or left over. It does not import torch."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.index import StoredTensor, index_faults, read_index
from pretrain.checkpoint.manifest import MANIFEST, Manifest, file_faults, read_manifest
from pretrain.config.errors import RunError

LEFTOVERS = {".partial": "unfinished save", ".deleting": "unfinished deletion"}


@dataclass(frozen=True)
class Found:
    """One folder of a run's checkpoints."""

    folder: Path
    manifest: Manifest | None
    """None: it has no usable manifest."""
    faults: Sequence[str]

    @property
    def is_leftover(self) -> bool:
        """Whether a save or a deletion was interrupted here; a resume ignores the folder."""
        return self.folder.suffix in LEFTOVERS

    @property
    def is_whole(self) -> bool:
        return self.manifest is not None and not self.faults

    @property
    def status(self) -> str:
        if self.is_leftover:
            return f"left over: {LEFTOVERS[self.folder.suffix]}"
        if self.is_whole:
            return "whole"
        more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
        return self.faults[0].removeprefix(f"{self.folder}/") + more


def folder_of_checkpoints(path: Path) -> Path | None:
    """The folder with the checkpoints of a run; `path` is it or the run folder. None: `path` is a single checkpoint.

    Raises RunError if `path` is none of these.
    """
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (folder.name == "checkpoints" or any(_folders(folder))):
            return folder
    if not path.exists():
        raise RunError(f"{path}: no such folder", "give a run folder, such as runs/NAME, or a checkpoint in it")
    if not (path / MANIFEST).exists() and not path.name.startswith("step-"):
        raise RunError(f"{path}: neither a run folder (it has no checkpoints/) nor a checkpoint (it has no {MANIFEST})")
    return None


def find_all(path: Path, *, digests: bool = False) -> list[Found]:
    """Every checkpoint folder of a run, oldest first, or the one at `path`; files are checked by size, or by digest.

    A checkpoint that a live run deletes meanwhile is left out.
    """
    folder = folder_of_checkpoints(path)
    if folder is None:
        return [look_at(path, digests=digests)]
    found = [look_at(each, digests=digests) for each in sorted(_folders(folder))]
    return [each for each in found if each.folder.exists()]


def look_at(folder: Path, *, digests: bool = False) -> Found:
    """Compare the files of one folder with its manifest."""
    try:
        manifest = read_manifest(folder)
    except RunError as error:
        return Found(folder, None, [error.one_line])
    return Found(folder, manifest, list(file_faults(folder, manifest["files"], digests=digests)))


def next_resume(found: Sequence[Found]) -> Found | None:
    """The checkpoint that a resume takes, as far as its files were checked."""
    return next((each for each in reversed(found) if each.is_whole and not each.is_leftover), None)


def open_one(path: Path) -> Found:
    """The checkpoint at `path`, or the newest whole one (by sizes) of the run there; raises RunError without one."""
    found = find_all(path)
    if folder_of_checkpoints(path) is None:
        if not found[0].is_whole:
            raise RunError(found[0].faults[0])
        return found[0]
    newest = next_resume(found)
    if newest is None:
        raise RunError(f"{path}: no whole checkpoint", f"`pretrain checkpoint list {path}` lists what is there")
    return newest


def tensors_of(found: Found) -> dict[str, StoredTensor]:
    """The index; raises RunError unless it covers every tensor exactly, within the checkpoint's own files."""
    tensors = read_index(found.folder)
    for fault in index_faults(found.folder, tensors, sizes_in(found)):
        raise RunError(fault)
    return tensors


def sizes_in(found: Found) -> Mapping[str, int]:
    """The bytes of each file according to the manifest."""
    files: Mapping[str, Mapping[str, Any]] = found.manifest["files"] if found.manifest else {}
    return {name: record["bytes"] for name, record in files.items()}


def bytes_below(folder: Path) -> int:
    """The sum of the file sizes in a folder, which a live run may be deleting."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("step-*") if path.suffix in ("", *LEFTOVERS) and path.is_dir())

"""`pretrain checkpoint prune`: deletes old checkpoints, but never the newest whole one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.inventory import Found, bytes_below, find_all, folder_of_checkpoints, look_at
from pretrain.checkpoint.manifest import remove_folder, remove_leftover
from pretrain.config.errors import RunError
from pretrain.run.lock import hold_run_folder


@dataclass(frozen=True)
class Pruned:
    """The result of pruning for one folder, or of a dry run."""

    found: Found
    deleted: bool
    bytes: int


def prune(run_dir: Path, *, keep_last: int, keep_every: int, dry_run: bool) -> Iterator[Pruned]:
    """Delete leftovers and all whole checkpoints except the newest `keep_last` and multiples of `keep_every` steps.

    Damaged checkpoints do not count and stay: a person may want what is left of them. Raises RunError if a live process
    holds the run folder.
    """
    if keep_last < 1:
        raise RunError(f"--keep-last {keep_last}: at least 1 is kept, the newest whole checkpoint")
    folder = folder_of_checkpoints(run_dir)
    if folder != run_dir / "checkpoints":
        raise RunError(f"{run_dir}: not the folder of a run: it has no checkpoints/")
    with contextlib.nullcontext() if dry_run else hold_run_folder(run_dir):
        found = _with_newest_checked(find_all(run_dir))
        kept = to_keep(found, keep_last, keep_every)
        for each in found:
            doomed = each.is_leftover or (each.is_whole and each.folder not in kept)
            size = 0 if each.folder.is_symlink() else bytes_below(each.folder)
            if doomed and not dry_run:
                remove_leftover(each.folder) if each.is_leftover else remove_folder(each.folder)
            yield Pruned(each, doomed, size)


def to_keep(found: list[Found], keep_last: int, keep_every: int) -> set[Path]:
    """The folders of the whole checkpoints to keep; `found` is sorted oldest first."""
    whole = [each for each in found if each.is_whole and not each.is_leftover]
    permanent = [each for each in whole if keep_every and _step(each) % keep_every == 0]
    return {each.folder for each in (*whole[-keep_last:], *permanent)}


def _with_newest_checked(found: list[Found]) -> list[Found]:
    """Check digests from the newest checkpoint back to the first whole one, which a resume would take."""
    checked = list(found)
    for number in reversed(range(len(checked))):
        if checked[number].is_whole and not checked[number].is_leftover:
            checked[number] = look_at(checked[number].folder, digests=True)
            if checked[number].is_whole:
                break
    return checked


def _step(found: Found) -> int:
    assert found.manifest is not None
    return int(found.manifest["state"]["step"])

"""Deleting old checkpoints by hand, never the newest whole one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.inventory import Found, bytes_below, find_all, folder_of_checkpoints, look_at
from pretrain.checkpoint.manifest import remove_folder, remove_leftover
from pretrain.config.errors import RunError
from pretrain.run.folder import hold_run_folder


@dataclass(frozen=True)
class Pruned:
    """What became of one folder, or would."""

    found: Found
    deleted: bool
    bytes: int


def prune(run_dir: Path, *, keep_last: int, keep_every: int, dry_run: bool) -> Iterator[Pruned]:
    """Delete leftovers and all whole checkpoints but the newest `keep_last` and those at multiples of `keep_every`.

    Damaged ones count for nothing and stay: a person may want what is left of them. Raises RunError where a live
    process holds the run.
    """
    if keep_last < 1:
        raise RunError(f"--keep-last {keep_last}: at least 1 is kept, the newest whole checkpoint")
    folder = folder_of_checkpoints(run_dir)
    if folder != run_dir / "checkpoints":
        raise RunError(f"{run_dir}: not the folder of a run: it has no checkpoints/")
    with contextlib.nullcontext() if dry_run else hold_run_folder(run_dir):
        found = _newest_proved(find_all(run_dir))
        kept = to_keep(found, keep_last, keep_every)
        for each in found:
            doomed = each.is_leftover or (each.is_whole and each.folder not in kept)
            size = 0 if each.folder.is_symlink() else bytes_below(each.folder)
            if doomed and not dry_run:
                remove_leftover(each.folder) if each.is_leftover else remove_folder(each.folder)
            yield Pruned(each, doomed, size)


def to_keep(found: list[Found], keep_last: int, keep_every: int) -> set[Path]:
    """Folders of the whole checkpoints that stay, `found` being oldest first."""
    whole = [each for each in found if each.is_whole and not each.is_leftover]
    for_ever = [each for each in whole if keep_every and _step(each) % keep_every == 0]
    return {each.folder for each in (*whole[-keep_last:], *for_ever)}


def _newest_proved(found: list[Found]) -> list[Found]:
    """Digests checked from the newest down to the first that is whole: what a resume would take is known to be good."""
    proved = list(found)
    for number in reversed(range(len(proved))):
        if proved[number].is_whole and not proved[number].is_leftover:
            proved[number] = look_at(proved[number].folder, digests=True)
            if proved[number].is_whole:
                break
    return proved


def _step(found: Found) -> int:
    assert found.manifest is not None
    return int(found.manifest["state"]["step"])

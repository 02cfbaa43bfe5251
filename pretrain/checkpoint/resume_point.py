"""The resume point of a run: its newest whole checkpoint, or step 0 if none was ever saved.

A run whose checkpoints are gone or damaged restarts at step 0 only if run.restart=true. Nothing of it is deleted then.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.collective import broadcast_result
from pretrain.checkpoint.manifest import set_aside
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.on_disk import Checkpoint, complete_ones
from pretrain.checkpoint.save_log import last_save, record_restart
from pretrain.checkpoint.saver import Level, build_levels, open_mirror
from pretrain.checkpoint.search import newest_of
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.errors import RunError, RunRefused
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import Engine
from pretrain.run.folder import forget_run_id, run_id

HINT = (
    "bring the checkpoints back (a disk that is not mounted, a copy), or "
    "choose another run.name, or restart at step 0 with run.restart=true: records and damaged checkpoints are kept "
    "beside the new ones"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run resumes from, and where it saves."""

    levels: list[Level]
    mirror: Mirror | None
    found: tuple[CheckpointStore, Checkpoint] | None
    """The checkpoint to resume from; None: step 0."""
    restarted: bool
    """Whether the run restarts at step 0 although it had checkpoints."""


def find_resume_point(
    config: RunConfig,
    run_dir: Path,
    engine: Engine,
    groups: ProcessGroups,
    here: Runtime,
    check_ownership: Callable[[], None],
) -> ResumePoint:
    """Search all levels and the mirror for the newest whole checkpoint; called on all ranks.

    Raises RunError if there were checkpoints and none can be used, unless run.restart=true.
    """

    def open_levels() -> list[Level]:
        node = (here.local_rank, here.local_size)
        return build_levels(config.checkpoint, run_dir, groups, node, lambda: run_id(run_dir), check_ownership)

    levels = open_levels()
    shared = levels[0].store
    mirror, at_mirror = open_mirror(config, shared, here)
    stores = [level.store for level in levels]
    search = newest_of(stores, engine)
    if mirror is not None and search.passed_over:
        # Their sizes agree with those at the mirror, so nothing was fetched before.
        newest = search.found[1].folder.name if search.found else ""
        fetch = lambda: mirror.fetch_newer(shared.folder, newest) if here.is_main else (False, [])  # noqa: E731
        is_fetched, at_mirror = broadcast_result("fetch", shared.folder, groups.control, fetch)
        if is_fetched:
            search = newest_of(stores, engine)
    if search.found is not None:
        if config.run.restart and here.is_main:
            log.info("run.restart=true has no effect: %s is whole", search.found[1].folder)
        return ResumePoint(levels, mirror, search.found, restarted=False)
    faults = [*at_mirror, *search.passed_over]

    def restart() -> bool:
        leave = mirror.restart if mirror is not None else lambda: None
        return here.is_main and restarts(run_dir, shared.folder, faults, allowed=config.run.restart, leave=leave)

    restarted = broadcast_result("begin", shared.folder, groups.control, restart)
    if mirror is not None:
        mirror.restarts = broadcast_result("begin", shared.folder, groups.control, lambda: mirror.restarts)
    # With another id, so that the new run does not use what the old one left on the nodes' disks.
    return ResumePoint(open_levels() if restarted else levels, mirror, None, restarted)


def restarts(
    run_dir: Path,
    checkpoints: Path,
    faults: Sequence[RunError],
    *,
    allowed: bool,
    leave: Callable[[], None] = lambda: None,
) -> bool:
    """Whether a run without a usable checkpoint had some. If `allowed`, all are set aside; else raises RunError with
    what is there.

    `faults`: those of the checkpoints found; if the system refused to read one, the error is RunRefused. `leave` sets
    aside the checkpoints at the mirror, before anything changes here. A run that was saved only on the nodes' own disks
    restarts on other nodes without `allowed`: such a checkpoint is not meant to outlive its node.
    """
    lines, last = [fault.one_line for fault in faults], last_save(run_dir)
    is_lost = last is not None and not any(last.folder.name in line for line in lines)
    if not faults and (last is None or not last.in_run_folder):
        if last is not None:
            log.warning("%s, and no other checkpoint exists: the run restarts at step 0", last)
        return False
    if is_lost:
        lines.append(str(last))
    if not checkpoints.is_dir():
        lines.append(f"{checkpoints} is missing")
    if not allowed:
        reason = "has no checkpoint that can be used, although it had some; training would restart at step 0"
        kind = RunRefused if any(isinstance(fault, RunRefused) for fault in faults) else RunError
        raise kind(f"run.dir={str(run_dir)!r} {reason}:" + "".join(f"\n  {line}" for line in lines), HINT)
    for line in lines:
        log.warning("%s", line)
    leave()
    for path in complete_ones(checkpoints):
        log.warning("%s is renamed to %s", path, set_aside(path).name)
    record_restart(run_dir)
    forget_run_id(run_dir)
    log.warning("run.restart=true: the run restarts at step 0")
    return True

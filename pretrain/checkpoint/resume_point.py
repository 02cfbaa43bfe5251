"""Where a run begins: at its newest whole checkpoint, or at step 0 if none was ever saved.

A run whose checkpoints are gone or damaged begins again at step 0 only if run.restart says so, and nothing of it is
deleted then.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.collective import first_says
from pretrain.checkpoint.manifest import set_aside
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.save_log import last_save, record_restart
from pretrain.checkpoint.saver import Level, levels_of, open_mirror
from pretrain.checkpoint.store import Checkpoint, CheckpointStore, complete_ones, newest_of
from pretrain.config.errors import RunError, RunRefused
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import Engine
from pretrain.run.folder import forget_run_id, run_id

HINT = (
    "bring the checkpoints back (a disk that is not mounted, a copy), or "
    "choose another run.name, or begin again at step 0 by run.restart=true: records and damaged checkpoints are kept "
    "beside the new ones"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """What a run begins with."""

    levels: list[Level]
    mirror: Mirror | None
    found: tuple[CheckpointStore, Checkpoint] | None
    """The checkpoint to resume from; None: step 0."""
    restarted: bool
    """Whether the run begins again although it had checkpoints."""


def find_beginning(
    config: RunConfig,
    run_dir: Path,
    engine: Engine,
    groups: ProcessGroups,
    here: Runtime,
    still_held: Callable[[], None],
) -> Beginning:
    """On all ranks: look for the newest whole checkpoint everywhere; raises RunError if there were some and none can be
    used, unless run.restart says what to do then."""

    def open_levels() -> list[Level]:
        node = (here.local_rank, here.local_size)
        return levels_of(config.checkpoint, run_dir, groups, node, lambda: run_id(run_dir), still_held)

    levels = open_levels()
    shared = levels[0].store
    mirror, at_mirror = open_mirror(config, shared, here)
    stores = [level.store for level in levels]
    search = newest_of(stores, engine)
    if mirror is not None and search.passed_over:
        # By their sizes they were as good as those at the mirror.
        newest = search.found[1].folder.name if search.found else ""
        fetch = lambda: mirror.fetch_newer(shared.folder, newest) if here.is_main else (False, [])  # noqa: E731
        is_fetched, at_mirror = first_says("fetch", shared.folder, groups.control, fetch)
        if is_fetched:
            search = newest_of(stores, engine)
    if search.found is not None:
        if config.run.restart and here.is_main:
            log.info("run.restart=true has no effect: %s is whole", search.found[1].folder)
        return Beginning(levels, mirror, search.found, restarted=False)
    faults = [*at_mirror, *search.passed_over]

    def restart() -> bool:
        leave = mirror.restart if mirror is not None else lambda: None
        return here.is_main and restarts(run_dir, shared.folder, faults, allowed=config.run.restart, leave=leave)

    restarted = first_says("begin", shared.folder, groups.control, restart)
    if mirror is not None:
        mirror.restarts = first_says("begin", shared.folder, groups.control, lambda: mirror.restarts)
    # With another id, so that what the old one left on the nodes' disks is not taken for the new run's.
    return Beginning(open_levels() if restarted else levels, mirror, None, restarted)


def restarts(
    run_dir: Path,
    checkpoints: Path,
    faults: Sequence[RunError],
    *,
    allowed: bool,
    leave: Callable[[], None] = lambda: None,
) -> bool:
    """Whether a run without a usable checkpoint had some: then all of them are set aside, or RunError says what is
    there. `faults`: what is wrong with those that were found; if the system refused to read one, it is RunRefused.
    `leave` does the same with what lies elsewhere, before anything changes here.

    A run that was saved on the nodes' own disks alone begins again when it comes to other nodes: such a checkpoint is
    not meant to outlive its node.
    """
    lines, last = [fault.one_line for fault in faults], last_save(run_dir)
    is_lost = last is not None and not any(last.folder.name in line for line in lines)
    if not faults and (last is None or not last.in_run_folder):
        if last is not None:
            log.warning("%s, and none elsewhere: the run begins again at step 0", last)
        return False
    if is_lost:
        lines.append(str(last))
    if not checkpoints.is_dir():
        lines.append(f"{checkpoints} is missing")
    if not allowed:
        reason = "has no checkpoint that can be used, although it had some; training would begin again at step 0"
        kind = RunRefused if any(isinstance(fault, RunRefused) for fault in faults) else RunError
        raise kind(f"run.dir={str(run_dir)!r} {reason}:" + "".join(f"\n  {line}" for line in lines), HINT)
    for line in lines:
        log.warning("%s", line)
    leave()
    for path in complete_ones(checkpoints):
        log.warning("%s is %s now", path, set_aside(path).name)
    record_restart(run_dir)
    forget_run_id(run_dir)
    log.warning("run.restart=true: the run begins again at step 0")
    return True

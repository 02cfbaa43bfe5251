"""Decides when and where to save, and saves in the background while training continues.

Tensors are not copied. From one optimizer step to the next update they do not change: a thread writes them during the
forward and backward passes in between, and the update waits for the rest (as in DataStates-LLM, Maurya et al. 2024).
Syncing the files to disk, their digests and the completion of the checkpoint run during later steps.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from pretrain.checkpoint.collective import broadcast_result, run_on_all_ranks
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.snapshot import Snapshot
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.errors import RunError
from pretrain.config.run import CheckpointConfig, RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import Engine
from pretrain.run.state import RunState

RETRY_SECONDS = 60.0

log = logging.getLogger(__name__)


class Interval(Protocol):
    """0: never."""

    @property
    def every_steps(self) -> int: ...

    @property
    def every_minutes(self) -> float: ...


class Level:
    """A store with the times of its saves."""

    def __init__(self, store: CheckpointStore, interval: Interval, steps: Collection[int] = ()) -> None:
        """`steps`: single steps after which it saves too."""
        self.store, self.interval, self.steps = store, interval, steps
        self.due_at = self._next()
        self.step = -1
        """The step of its newest save that has not failed."""

    def is_due_at(self, step: int) -> bool:
        return step in self.steps or (self.interval.every_steps > 0 and step % self.interval.every_steps == 0)

    def is_due_now(self) -> bool:
        return time.monotonic() >= self.due_at

    def started(self, step: int) -> None:
        self.due_at, self.step = self._next(), step

    def failed(self) -> None:
        self.due_at, self.step = time.monotonic() + RETRY_SECONDS, -1

    def _next(self) -> float:
        return time.monotonic() + (self.interval.every_minutes * 60 or float("inf"))


def build_levels(
    config: CheckpointConfig,
    run_dir: Path,
    groups: ProcessGroups,
    node: tuple[int, int],
    run_id: Callable[[], str],
    check_ownership: Callable[[], None],
) -> list[Level]:
    """The shared level and, if configured, the one on the nodes' own disks; raises RunError if that has no space.

    `node`: this rank's number on its node, and the ranks of the node. `run_id` and `check_ownership` are called on one
    rank.
    """
    shared = CheckpointStore(
        run_dir,
        groups=groups,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        keep_steps=config.keep_steps,
        check_ownership=check_ownership,
    )
    if config.local.path is None:
        return [Level(shared, config, config.keep_steps)]
    disk = Path(config.local.path)
    is_main = dist.get_rank() == 0
    name = broadcast_result("name", disk, groups.control, lambda: run_id() if is_main else "")
    folder = disk / name  # another run of the same name must not find it
    run_on_all_ranks("make room for", disk, groups.control, lambda: folder.mkdir(parents=True, exist_ok=True))
    on_node = CheckpointStore(folder, groups=groups, keep_last=config.local.keep_last, node=node)
    return [Level(shared, config, config.keep_steps), Level(on_node, config.local)]


def open_mirror(config: RunConfig, shared: CheckpointStore, here: Runtime) -> tuple[Mirror | None, list[RunError]]:
    """Open the configured mirror and fetch its newest checkpoint if that is newer than all in the shared folder.

    Also returns the faults of damaged checkpoints there.
    """
    url, keep_last = config.checkpoint.mirror, config.checkpoint.keep_last
    if url is None:
        return None, []
    mirror = Mirror(
        url,
        keep_last,
        config.data.cache,
        here.rank,
        here.world_size,
        still_seconds=config.engine.timeout_minutes * 60 / 2,
        moved=here.moved,
    )
    begin = lambda: (mirror.begin(shared.folder) if here.is_main else [], mirror.restarts)  # noqa: E731
    faults, mirror.restarts = broadcast_result("fetch", shared.folder, shared.control, begin)
    return mirror, faults


class Saver:
    """Saves what the engine holds; every method but `due_by_clock` is called on all ranks together.

    The first level is the shared folder; a second level may be on each node's own disk.
    """

    def __init__(
        self,
        engine: Engine,
        levels: list[Level],
        *,
        describe: Callable[[RunState], Mapping[str, Any]],
        in_background: bool,
        group: dist.ProcessGroup,
        mirror: Mirror | None = None,
        saved: Callable[[int, Path], None] = lambda step, folder: None,
        saving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`describe`: the content of a manifest besides the state; `group`: only for saves, as a thread uses it;
        `saved` is called with each complete checkpoint; `saving` is entered while a step waits for a save."""
        self.engine, self.levels, self.describe = engine, levels, describe
        self.in_background, self.group, self.mirror, self.saved = in_background, group, mirror, saved
        self.saving = saving
        self._running: tuple[Level, _Save] | None = None

    def due_by_clock(self) -> int:
        """A bit for each level that is due; the ranks must agree on one clock."""
        return sum(level.is_due_now() << number for number, level in enumerate(self.levels))

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        """Save if a save is due, but no step twice; the `last` save is on the disk on return.

        A failed save is logged and retried within a minute; only the last one raises RunError.
        """
        if self._running is not None and (last or self._running[1].done.is_set()):
            self.wait()
        due = [
            level
            for number, level in enumerate(self.levels)
            if level.step != state.step
            and (by_clock >> number & 1 or level.is_due_at(state.step) or (last and number == 0))
        ]
        if due:
            with self.saving():
                self._save(state, due, last=last)

    def _save(self, state: RunState, due: list[Level], *, last: bool) -> None:
        self.wait()
        for level in due:
            level.started(state.step)
        store = due[0].store  # a save in the shared folder is not repeated on the node
        save = _Save(store, store.snapshot(self.engine, state, self.describe(state)), self.group, self.saved)
        self._running = (due[0], save)
        if last:
            fault = self._end()
            if fault is not None:
                message = f"{fault.message}; earlier checkpoints are untouched"
                raise type(fault)(
                    message, *fault.hints, "make room or repair the disk, then run the same command again"
                )
        elif not self.in_background:
            self.wait()
        else:
            self.engine.before_next_update(save.wait_until_read)

    def wait(self) -> None:
        """Wait until nothing is being written; a failure is logged."""
        fault = self._end()
        if fault is not None and dist.get_rank() == 0:
            advice = (
                f"training continues and tries again at the next save that is due, in {RETRY_SECONDS:.0f} s at the "
                "latest; make room or repair the disk"
            )
            log.error("NOT saved: %s; earlier checkpoints are untouched, %s", fault.one_line, advice)

    def _end(self) -> RunError | None:
        """Wait for the save that is running; returns why it failed, if it did."""
        if self._running is None:
            return None
        (level, save), self._running = self._running, None
        save.done.wait()
        if isinstance(save.outcome, RunError):
            level.failed()
            return save.outcome
        if save.outcome is not None:
            raise save.outcome
        log.info("%s", save)
        if self.mirror is not None and level is self.levels[0]:
            self.mirror.send(save.folder)
        return None

    def last_name(self) -> str:
        """The newest complete checkpoint of the shared folder, or `none`."""
        self.wait()
        return self.levels[0].store.last_name()

    def close(self) -> None:
        """Wait until all saves are complete, also at the mirror."""
        self.wait()
        if self.mirror is not None:
            self.mirror.close()


class _Save:
    """One save that is running, in its own thread."""

    def __init__(
        self,
        store: CheckpointStore,
        snapshot: Snapshot,
        group: dist.ProcessGroup,
        saved: Callable[[int, Path], None],
    ) -> None:
        self.store, self.snapshot, self.group, self.saved = store, snapshot, group, saved
        self.done, self._read = threading.Event(), threading.Event()
        self.outcome: BaseException | None = None
        self.folder = store.folder
        self._began, self.waited, self.seconds = time.perf_counter(), 0.0, 0.0
        # A daemon: after a failure elsewhere the process does not wait for it.
        threading.Thread(target=self._write, name="save", daemon=True).start()

    def wait_until_read(self) -> None:
        """Delay the update until the tensors are no longer needed."""
        began = time.perf_counter()
        self._read.wait()
        self.waited = time.perf_counter() - began

    def __str__(self) -> str:
        size = self.snapshot.num_bytes / 1e6
        return (
            f"saved {self.folder} in {self.seconds:.2f} s ({size:.1f} MB by this rank, {size / self.seconds:.0f} "
            f"MB/s); the update waited {self.waited:.3f} s"
        )

    def _write(self) -> None:
        try:
            self.folder = self.store.write(self.snapshot, self.group, self._read.set)
            self.saved(self.snapshot.step, self.folder)
        except BaseException as error:
            self.outcome = error
        finally:
            self.seconds = time.perf_counter() - self._began
            self._read.set()
            self.done.set()

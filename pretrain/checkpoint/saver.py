"""When to save and where to; in the background, so that training goes on while a checkpoint is written.

Tensors are not copied. From the end of one optimizer step to the next update they stay as they are: a thread writes
them during the forward and backward passes in between, and the update waits for what is left (as in DataStates-LLM,
Maurya et al. 2024). What the system then still holds of the files goes to the disk, is digested and completed while
later steps run.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from pretrain.checkpoint.collective import first_says, together
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.store import CheckpointStore, Snapshot
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
    """A store with the times at which it is written."""

    def __init__(self, store: CheckpointStore, interval: Interval) -> None:
        self.store, self.interval = store, interval
        self.due_at = self._next()
        self.step = -1
        """Of its newest save that has not failed."""

    def is_due_at(self, step: int) -> bool:
        return self.interval.every_steps > 0 and step % self.interval.every_steps == 0

    def is_due_now(self) -> bool:
        return time.monotonic() >= self.due_at

    def begun(self, step: int) -> None:
        self.due_at, self.step = self._next(), step

    def failed(self) -> None:
        self.due_at, self.step = time.monotonic() + RETRY_SECONDS, -1

    def _next(self) -> float:
        return time.monotonic() + (self.interval.every_minutes * 60 or float("inf"))


def levels_of(
    config: CheckpointConfig,
    run_dir: Path,
    groups: ProcessGroups,
    node: tuple[int, int],
    run_id: Callable[[], str],
    still_held: Callable[[], None],
) -> list[Level]:
    """The shared level and, if there is one, that on the nodes' disks; raises RunError where that has no place.

    `node`: this rank's number on its node, and how many ranks it has; `run_id` and `still_held` are called on one rank.
    """
    keep_last, keep_every = config.keep_last, config.keep_every
    shared = CheckpointStore(run_dir, groups=groups, keep_last=keep_last, keep_every=keep_every, still_held=still_held)
    if config.local.path is None:
        return [Level(shared, config)]
    disk = Path(config.local.path)
    is_main = dist.get_rank() == 0
    name = first_says("name", disk, groups.control, lambda: run_id() if is_main else "")
    folder = disk / name  # another run of the same name must not find it
    together("make room for", disk, groups.control, lambda: folder.mkdir(parents=True, exist_ok=True))
    on_node = CheckpointStore(folder, groups=groups, keep_last=config.local.keep_last, node=node)
    return [Level(shared, config), Level(on_node, config.local)]


def open_mirror(config: RunConfig, shared: CheckpointStore, here: Runtime) -> tuple[Mirror | None, list[RunError]]:
    """The mirror of the configuration; what it has that is newer than all in the shared folder is fetched first.

    Also what is wrong with damaged checkpoints there.
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
    faults, mirror.restarts = first_says("fetch", shared.folder, shared.control, begin)
    return mirror, faults


class Saver:
    """Saves what the engine holds; every method but `due_by_clock` is called on all ranks together.

    The first level is the shared folder; a second may lie on each node's own disk.
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
    ) -> None:
        """`describe`: what a manifest says besides the state; `group`: for this alone, as a thread talks over it;
        `saved` is called with each complete checkpoint."""
        self.engine, self.levels, self.describe = engine, levels, describe
        self.in_background, self.group, self.mirror, self.saved = in_background, group, mirror, saved
        self._running: tuple[Level, _Save] | None = None

    def due_by_clock(self) -> int:
        """A bit for each level whose time has come; ranks must agree on whose clock counts."""
        return sum(level.is_due_now() << number for number, level in enumerate(self.levels))

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        """Save if it is time for it, no step twice; the `last` one is on the disk on return.

        A save that failed is logged and tried again within a minute; only the last one raises RunError.
        """
        if self._running is not None and (last or self._running[1].done.is_set()):
            self.wait()
        due = [
            level
            for number, level in enumerate(self.levels)
            if level.step != state.step
            and (by_clock >> number & 1 or level.is_due_at(state.step) or (last and number == 0))
        ]
        if not due:
            return
        self.wait()
        for level in due:
            level.begun(state.step)
        store = due[0].store  # what is in the shared folder need not be on the node too
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
        """Until nothing is being written; a failure is told."""
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
        """Until all that was saved is where it belongs."""
        self.wait()
        if self.mirror is not None:
            self.mirror.close()


class _Save:
    """One save on its way, in a thread of its own."""

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
        # A daemon: after a failure elsewhere nobody waits for it.
        threading.Thread(target=self._write, name="save", daemon=True).start()

    def wait_until_read(self) -> None:
        """Hold up the update until the tensors are not needed any more."""
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

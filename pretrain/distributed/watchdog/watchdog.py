"""A thread beside training that notices the failure of any rank and ends this process with a report that names it.

It sends a heartbeat to the store, answers when ranks are asked for their status, and asks the others if this process's
main thread has not moved for too long. It uses no collective and no GPU: once a second it looks at one stack and writes
two entries.
"""

import contextlib
import faulthandler
import itertools
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.watchdog import thread_stacks
from pretrain.distributed.watchdog.diagnose import report_error, report_left, report_no_progress
from pretrain.distributed.watchdog.errors import ErrorOrigin, origin_of
from pretrain.distributed.watchdog.failure_store import FailureStore
from pretrain.distributed.watchdog.inquiry import BEAT_SECONDS, STATUS_SECONDS, Inquiry, agent_holds_store
from pretrain.distributed.watchdog.local_ranks import SHOW_STACKS, LocalRanks, machine_name
from pretrain.distributed.watchdog.rank_status import RankProcess, RankStatus, coordinates
from pretrain.distributed.watchdog.signal_pipe import SignalPipe
from pretrain.distributed.watchdog.thread_stacks import StillMeter, all_stacks
from pretrain.exit_codes import ExitCode
from pretrain.outcome import record
from pretrain.outcome.failure import FailureKind, FailureReport, Stage

Item = TypeVar("Item")
log = logging.getLogger(__name__)

GONE_SECONDS = 4.0
"""Time after a lost connection in which the rank that closed it is found dead, or reports its own error."""
GRACE_SECONDS = 3.0
"""Time from a report until a main thread that did not fail by itself is aborted."""
DEADLINE_SECONDS = 20.0
"""Time from a failure of the main thread until the process is aborted, even if it is still busy."""
START_SECONDS = 10.0
"""Time without any movement that is allowed before the first step and after a request to stop."""
LOST_SECONDS = 10.0
"""The store may be out of reach for this long."""
LOG_SECONDS = 5.0
HOST_SECONDS = 3 * BEAT_SECONDS
"""Rank 0 may hold the store: it waits until the others have read the report."""


class Watchdog:
    """Watches this process, and through the store all others."""

    def __init__(
        self,
        rank: int,
        layout: ParallelLayout,
        limit_seconds: float,
        meeting_seconds: float,
        stop_requested: Callable[[], bool],
    ) -> None:
        """`limit_seconds`: the run is ended if the main thread has not moved for this long.

        `meeting_seconds`: the same until all ranks have met.
        """
        host = socket.gethostname()
        self._process = RankProcess(rank, coordinates(layout, rank), host, machine_name(), os.getpid())
        self._layout, self._limit, self._meeting_seconds = layout, limit_seconds, meeting_seconds
        self._stop_requested = stop_requested
        self._main = threading.main_thread()
        self._still = StillMeter()
        self._stage, self._step = Stage.START_UP, None  # type: Stage, int | None
        self._store: FailureStore | None = None
        self._is_connected = self._have_all_met = False
        self._meeting_ends = time.monotonic() + meeting_seconds
        self._report: FailureReport | None = None
        self._status_at_failure: RankStatus | None = None
        self._local_ranks = LocalRanks(rank, layout.world_size)
        self._inquiry = Inquiry(rank, layout, self._local_ranks)
        self._parent = os.getppid()
        self._signals = SignalPipe()
        self._closed, self._failing, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def alone(self) -> bool:
        return self._layout.world_size == 1

    # --- called from the main thread

    def start(self) -> None:
        # Handled in C: this also works if native code does not let Python run.
        faulthandler.register(SHOW_STACKS, all_threads=True)
        # A process that a signal kills prints where it was. SIGBUS comes if the disk of a mapped shard fails.
        faulthandler.enable()
        if not self.alone:
            self._signals.open()
        self._thread.start()

    def count_steps(self, batches: Iterable[Item], step: int) -> Iterator[Item]:
        """Pass batches on. Each one begins a step, the first of them the one after `step`."""
        waiting = iter(batches)
        for number in itertools.count(step + 1):
            self._stage, self._step = Stage.TRAINING, number
            self._still.reset()
            try:
                batch = next(waiting)
            except StopIteration:
                return
            yield batch

    def begin_step(self, step: int) -> None:
        """The main thread computes `step` from now on, whichever batch it asked for last."""
        self._step = step
        self._still.reset()

    @contextlib.contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """The main thread is in this stage as long as the context lasts."""
        before, self._stage = self._stage, stage
        yield
        self._stage = before  # not after an error: the report names the stage of the error

    def have_met(self) -> None:
        """All ranks have joined."""
        self._have_all_met = True
        self._still.reset()

    def moved(self) -> None:
        """Something that the main thread waits for makes progress."""
        self._still.reset()

    def close(self, error: BaseException | None = None) -> None:
        """End normally, or with an error that is not a failure of the program; the launcher gets that error first."""
        report = None if error is None else report_left(self._process, self._stage, self._step, error)
        if report is not None:
            record.write_for_launcher(record.failure(report))
        self._closed.set()
        self._wake.set()
        if not self.alone:
            self._signals.close()
        faulthandler.cancel_dump_traceback_later()
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.leave(self._process.rank, report)

    def failed(self, error: Exception) -> FailureReport:
        """The report on a failure that reached the main thread as `error`. The process has to end soon after."""
        own = report_error(self._process, self._stage, self._step, error)
        origin = origin_of(error)
        waits = origin is not ErrorOrigin.THIS_RANK
        frames = traceback.extract_tb(error.__traceback__)
        self._status_at_failure = thread_stacks.status(frames, waits, 0.0, self._stage, self._step)
        self._failing.set()
        self._wake.set()
        self._report = own
        self._cut_off_later()
        self._report = report = own if self.alone else self._find_report(origin, own)
        record.write_for_launcher(record.failure(report))
        if report.kind is FailureKind.UNRESPONSIVE:
            self._local_ranks.kill(report.ranks)
        self._stay_if_host()
        return report

    def text(self, report: FailureReport) -> str:
        """The part of a report that this rank logs: rank 0 everything, the others the message."""
        return str(report) if self._process.rank == 0 else report.message

    # --- finding the report

    def _find_report(self, origin: ErrorOrigin, own: FailureReport) -> FailureReport:
        try:
            store = self._wait_for_store()
            if origin is ErrorOrigin.THIS_RANK:
                return store.settle(own)
            is_gone = origin is ErrorOrigin.PEER_GONE
            report = store.wait_for_report(GONE_SECONDS) if is_gone else store.report()
            return report or self._inquiry.ask_all(store, self._status(), own if is_gone else None)
        except RuntimeError:
            return own if origin is ErrorOrigin.THIS_RANK else self._lost_store()

    def _wait_for_store(self) -> FailureStore:
        """The thread connects it. Raises RuntimeError if the store stays out of reach."""
        limit = time.monotonic() + STATUS_SECONDS
        while (store := self._store) is None:
            if time.monotonic() > limit:
                raise RuntimeError("no connection to the store")
            time.sleep(0.05)
        return store

    # --- the thread

    def _watch(self) -> None:
        lost_at = None
        while not self._closed.is_set():
            if not self._failing.is_set():
                self._set_backstop()
                self._still.look(self._main)
            try:
                report = self._look_around()
                lost_at = None
            except RuntimeError:
                lost_at = lost_at or time.monotonic()
                self._store = None
                limit = lost_at + LOST_SECONDS if self._is_connected else self._meeting_ends
                report = self._lost_store() if self._is_orphan() or time.monotonic() > limit else None
            if report is not None:
                self._conclude(report)
                return
            self._wake.wait(BEAT_SECONDS)
            if self._failing.is_set():
                time.sleep(BEAT_SECONDS / 10)  # from here on there is something to find out

    def _look_around(self) -> FailureReport | None:
        """One heartbeat; the report, if there is one or this rank has to find it."""
        if self.alone:
            is_stuck = self._still.seconds >= self._limit
            return report_no_progress(self._process, self._status()) if is_stuck else None
        if self._store is None:
            seconds = LOST_SECONDS if self._is_connected else self._meeting_ends - time.monotonic()
            connected = FailureStore.connect(max(seconds, BEAT_SECONDS))
            connected.add_process(self._process)
            self._store, self._is_connected = connected, True
        store = self._store
        if self._closed.is_set():
            return None
        store.beat(self._process.rank)
        if store.is_asked():
            store.set_status(self._process.rank, self._status())
            if (report := store.report()) is not None:
                return report
        if not self._local_ranks.all_known:
            self._local_ranks.add(store.processes_on(self._process.machine))
        dead = self._local_ranks.ended()
        if dead and (report := self._inquiry.look_at_dead(store, self._stage, self._step)) is not None:
            return report
        if self._is_stuck() and not self._failing.is_set():
            return self._inquiry.ask_all(store, self._status(), None)
        return None

    def _is_stuck(self) -> bool:
        # A launcher whose rank died before the ranks met asks the others to stop, which wait for the dead one.
        cut_short = self._step is None and (self._stop_requested() or self._signals.has_signal())
        limit = self._limit if self._have_all_met else self._meeting_seconds
        return self._still.seconds >= (min(START_SECONDS, limit) if cut_short else limit)

    def _status(self) -> RankStatus:
        still = self._still.seconds
        return self._status_at_failure or thread_stacks.status_now(self._main, still, self._stage, self._step)

    def _lost_store(self) -> FailureReport:
        return self._inquiry.report_lost_store(self._stage, self._step, joined=self._is_connected)

    def _set_backstop(self) -> None:
        """Native code that never lets Python run also stops this thread. Then C code ends the process, with stacks."""
        if not self.alone and not self._closed.is_set():
            limit = self._limit if self._have_all_met else max(self._limit, self._meeting_seconds)
            faulthandler.dump_traceback_later(limit + LOST_SECONDS + DEADLINE_SECONDS, exit=True)
            if self._closed.is_set() or self._failing.is_set():  # in the meantime
                faulthandler.cancel_dump_traceback_later()

    def _is_orphan(self) -> bool:
        return os.getppid() != self._parent

    # --- the end

    def _conclude(self, report: FailureReport) -> None:
        """Give the main thread time to fail by itself; then end the process."""
        record.write_for_launcher(record.failure(report))
        if report.kind is FailureKind.UNRESPONSIVE:
            self._local_ranks.kill(report.ranks)
        limit = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < limit:
            if self._failing.is_set() or self._closed.is_set():
                return
            time.sleep(0.05)
        self._end(report)

    def _cut_off_later(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        timer = threading.Timer(DEADLINE_SECONDS, lambda: self._end(self._report))
        timer.daemon = True
        timer.start()

    def _end(self, report: FailureReport | None) -> None:
        # In a thread: whatever blocks the main thread may also hold the lock of the log.
        writer = threading.Thread(target=self._log, args=(report,), daemon=True)
        writer.start()
        writer.join(LOG_SECONDS)
        self._stay_if_host()
        os._exit(ExitCode.FAILED)

    def _log(self, report: FailureReport | None) -> None:
        if report is not None:
            if self._process.rank in report.ranks:
                log.info("threads of rank %d:\n%s", self._process.rank, all_stacks())
            log.error("%s", self.text(report))
        sys.stdout.flush()
        sys.stderr.flush()

    def _stay_if_host(self) -> None:
        if self._process.rank == 0 and self._store is not None and not agent_holds_store():
            time.sleep(HOST_SECONDS)

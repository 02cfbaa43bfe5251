"""A thread beside training that notices a rank's failure and ends this process with the culprit's name.

It beats on the board, answers when ranks are asked where they stand, and asks itself where this process's main thread
has not moved for too long. No collective, no word to the GPU: once a second it looks at one stack and sends two notes.
"""

import contextlib
import faulthandler
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from data_pipeline.errors import UserError, error_line
from pretrain.config.errors import TrainingDiverged
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.watchdog import failure, thread_stacks
from pretrain.distributed.watchdog.failure import Place, RankFailed, Stand, Trouble, Verdict
from pretrain.distributed.watchdog.failure_store import Board
from pretrain.distributed.watchdog.local_ranks import SHOW_STACKS, Neighbours, kernel_kills, machine_name
from pretrain.distributed.watchdog.thread_stacks import StillMeter, all_stacks
from pretrain.exit_codes import ExitCode

Item = TypeVar("Item")
log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
STAND_SECONDS = 5.0
"""Time to answer where one stands; a rank that does not is silent."""
GONE_SECONDS = 4.0
"""After a connection broke: time for the rank that broke it to be found dead, or to tell its own fault."""
GRACE_SECONDS = 3.0
"""From a verdict until a main thread that did not fail by itself is cut off."""
DEADLINE_SECONDS = 20.0
"""From a failure of the main thread until the process is cut off, whatever it does meanwhile."""
START_SECONDS = 10.0
"""Without any move, before the first step and after a request to stop."""
LOST_SECONDS = 10.0
"""The store may be out of reach for so long."""
TELL_SECONDS = 5.0
HOST_SECONDS = 3 * BEAT_SECONDS
"""Rank 0 may hold the store: it stays until the others have read the verdict."""


class Sentinel:
    """Watches this process, and through the board all others."""

    def __init__(
        self,
        rank: int,
        layout: ParallelLayout,
        limit_seconds: float,
        meeting_seconds: float,
        stop_requested: Callable[[], bool],
    ) -> None:
        """`limit_seconds`: without any move of the main thread until the run is ended.

        `meeting_seconds`: the same until all ranks have met.
        """
        machine, host = machine_name(), socket.gethostname()
        self._place = Place(rank, failure.coordinates(layout, rank), host, machine, os.getpid())
        self._layout, self._limit, self._meeting_seconds = layout, limit_seconds, meeting_seconds
        self._stop_requested = stop_requested
        self._main = threading.main_thread()
        self._still = StillMeter()
        self._step: int | None = None
        self._board: Board | None = None
        self._is_connected = self._have_all_met = False
        self._meeting_ends = time.monotonic() + meeting_seconds
        self._verdict = Verdict((), "")
        self._own_stand: Stand | None = None
        self._neighbours = Neighbours(rank, layout.world_size)
        self._kernel_kills = kernel_kills()
        self._parent = os.getppid()
        self._arrivals, self._signals = socket.socketpair()
        self._arrivals.setblocking(False)
        self._signals.setblocking(False)
        self._signalled = False
        self._closed, self._failing, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sentinel", daemon=True)

    @property
    def alone(self) -> bool:
        return self._layout.world_size == 1

    # --- called from the main thread

    def start(self) -> None:
        # Handled in C: it also works where native code does not let Python run.
        faulthandler.register(SHOW_STACKS, all_threads=True)
        # What dies of a signal says where: SIGBUS is what a shard gives that a disk no longer can.
        faulthandler.enable()
        if not self.alone:
            signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def count_steps(self, batches: Iterable[Item], step: int) -> Iterator[Item]:
        """Pass batches on; each one begins a step, the first of them the one after `step`."""
        waiting = iter(batches)
        for number in itertools.count(step + 1):
            self._step = number
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

    def have_met(self) -> None:
        """All ranks are there."""
        self._have_all_met = True
        self._still.reset()

    def moved(self) -> None:
        """What the main thread waits for gets on."""
        self._still.reset()

    def close(self, word: str = "") -> None:
        """End in good order, or for a reason that is no failure of this rank, said in `word`."""
        self._closed.set()
        self._wake.set()
        if not self.alone:
            signal.set_wakeup_fd(-1)
        faulthandler.cancel_dump_traceback_later()
        if self._board is not None:
            with contextlib.suppress(RuntimeError):
                self._board.leave(self._place.rank, word)

    def failed(self, error: Exception) -> Verdict:
        """The verdict on a failure that reached the main thread as `error`; the process has to end soon after."""
        own = failure.verdict_on_error(self._place, self._step, error)
        trouble = failure.trouble_of(error)
        self._own_stand = thread_stacks.stand(
            traceback.extract_tb(error.__traceback__), trouble is not Trouble.OWN, 0.0, self._step
        )
        self._failing.set()
        self._wake.set()
        self._verdict = own
        self._cut_off_later()
        if self.alone:
            return own
        try:
            verdict = self._find_verdict(self._wait_for_board(), trouble, own)
        except RuntimeError:
            verdict = own if trouble is Trouble.OWN else self._lost()
        self._verdict = verdict
        if verdict.silent:
            self._neighbours.end(verdict.culprits)
        self._host_stays()
        return verdict

    def words(self, verdict: Verdict) -> str:
        """What this rank tells of it: rank 0 all, the others who and why."""
        return str(verdict) if self._place.rank == 0 else verdict.cause

    # --- finding the verdict

    def _wait_for_board(self) -> Board:
        """The thread connects it; raises RuntimeError where the store stays out of reach."""
        limit = time.monotonic() + STAND_SECONDS
        while (board := self._board) is None:
            if time.monotonic() > limit:
                raise RuntimeError("no connection to the store")
            time.sleep(0.05)
        return board

    def _find_verdict(self, board: Board, trouble: Trouble, own: Verdict) -> Verdict:
        if trouble is Trouble.OWN:
            return board.settle(own)
        verdict = board.wait_for_verdict(GONE_SECONDS) if trouble is Trouble.PEER_GONE else board.verdict()
        return verdict or self._ask_all(board, own if trouble is Trouble.PEER_GONE else None)

    def _ask_all(self, board: Board, otherwise: Verdict | None) -> Verdict:
        """Have every rank say where it stands and judge; `otherwise` is the verdict where that blames nobody."""
        world = range(self._layout.world_size)
        board.answer(self._place.rank, self._stand_now())
        if board.call() > 1:  # one asks, the others wait for what it finds
            verdict = board.wait_for_verdict(2 * STAND_SECONDS)
            if verdict is not None:
                return verdict
        limit = time.monotonic() + STAND_SECONDS
        while time.monotonic() < limit and not board.have_all_answered(len(world)) and board.verdict() is None:
            time.sleep(0.1)
        stands, places = board.stands(world), self._all_places(board)
        silent = [rank for rank in world if rank not in stands]
        verdict = failure.judge(
            places,
            stands,
            ended=self._neighbours.ended(silent),
            silent_seconds=board.seconds_since_beat(silent),
            kernel_kills=kernel_kills() - self._kernel_kills,
        )
        return board.settle(verdict or otherwise or failure.verdict_on_waiting(places, stands))

    def _all_places(self, board: Board) -> dict[int, Place]:
        world = range(self._layout.world_size)
        unknown = {rank: Place(rank, failure.coordinates(self._layout, rank), "", "", 0) for rank in world}
        return unknown | board.places(world)

    # --- the thread

    def _watch(self) -> None:
        lost_at = None
        while not self._closed.is_set():
            if not self._failing.is_set():
                self._set_backstop()
                self._still.look(self._main)
            try:
                verdict = self._look_around()
                lost_at = None
            except RuntimeError:
                lost_at = lost_at or time.monotonic()
                self._board = None
                limit = lost_at + LOST_SECONDS if self._is_connected else self._meeting_ends
                verdict = self._lost() if self._is_orphan() or time.monotonic() > limit else None
            if verdict is not None:
                self._conclude(verdict)
                return
            self._wake.wait(BEAT_SECONDS)
            if self._failing.is_set():
                time.sleep(BEAT_SECONDS / 10)  # from here on there is something to find out

    def _look_around(self) -> Verdict | None:
        """One beat; the verdict, if there is one or this rank has to find it."""
        if self.alone:
            return self._verdict_alone() if self._still.seconds >= self._limit else None
        if self._board is None:
            seconds = LOST_SECONDS if self._is_connected else self._meeting_ends - time.monotonic()
            board = Board.connect(max(seconds, BEAT_SECONDS))
            board.enter(self._place)
            self._board, self._is_connected = board, True
        board = self._board
        if self._closed.is_set():
            return None
        board.beat(self._place.rank)
        if board.is_called():
            board.answer(self._place.rank, self._stand_now())
            if (verdict := board.verdict()) is not None:
                return verdict
        if not self._neighbours.all_met:
            self._neighbours.meet(board.neighbours(self._place.machine))
        dead = self._neighbours.ended()
        if dead and (verdict := self._verdict_on_dead(board)) is not None:
            return verdict
        if self._is_stuck() and not self._failing.is_set():
            return self._ask_all(board, None)
        return None

    def _is_stuck(self) -> bool:
        # A launcher whose rank died before the ranks met asks the others to stop, who wait for it to come.
        cut_short = self._step is None and (self._stop_requested() or self._has_signal())
        limit = self._limit if self._have_all_met else self._meeting_seconds
        return self._still.seconds >= (min(START_SECONDS, limit) if cut_short else limit)

    def _has_signal(self) -> bool:
        """Whether a signal came that Python handles, also while native code keeps its handler waiting."""
        with contextlib.suppress(BlockingIOError):
            self._signalled = bool(self._arrivals.recv(64)) or self._signalled
        return self._signalled

    def _verdict_alone(self) -> Verdict:
        stand = self._stand_now()
        cause = f"no progress for {stand.still_seconds:.0f} s (engine.timeout_minutes), standing at {stand.where}"
        return Verdict((0,), cause, stand.stack)

    def _verdict_on_dead(self, board: Board) -> Verdict | None:
        """The verdict where a rank of this machine ended without having said why."""
        time.sleep(BEAT_SECONDS / 4)  # others may be killed in the same moment
        dead = self._neighbours.ended()
        left = board.left(dead)
        for rank, word in left.items():
            self._neighbours.forget(rank)
            if word:
                return board.settle(Verdict((rank,), f"rank {rank} ended: {word}"))
        if (verdict := board.verdict()) is not None or len(left) == len(dead):
            return verdict
        places, kills = board.places(dead), kernel_kills() - self._kernel_kills
        found = failure.judge(places, {}, ended=[rank for rank in dead if rank not in left], kernel_kills=kills)
        assert found is not None
        return board.settle(found)

    def _stand_now(self) -> Stand:
        return self._own_stand or thread_stacks.stand_now(self._main, self._still.seconds, self._step)

    def _set_backstop(self) -> None:
        """Native code that never lets Python run also stops this thread: then C code ends the process, with stacks."""
        if not self.alone and not self._closed.is_set():
            limit = self._limit if self._have_all_met else max(self._limit, self._meeting_seconds)
            faulthandler.dump_traceback_later(limit + LOST_SECONDS + DEADLINE_SECONDS, exit=True)
            if self._closed.is_set() or self._failing.is_set():  # meanwhile
                faulthandler.cancel_dump_traceback_later()

    # --- the end

    def _is_orphan(self) -> bool:
        return os.getppid() != self._parent

    def _lost(self) -> Verdict:
        """The verdict where the store does not answer any more."""
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if _agent_holds_store():
            return Verdict((), f"the launcher at {where}, through which the ranks met, is gone")
        place = failure.coordinates(self._layout, 0)
        why = f"ended without a word: {failure.KILLED}" if self._is_connected else failure.NEVER_MET
        return Verdict((0,), f"rank 0 ({place}, at {where}) failed first: {why}")

    def _conclude(self, verdict: Verdict) -> None:
        """Give the main thread time to fail by itself; then end the process."""
        if verdict.silent:
            self._neighbours.end(verdict.culprits)
        limit = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < limit:
            if self._failing.is_set() or self._closed.is_set():
                return
            time.sleep(0.05)
        self._end(verdict)

    def _cut_off_later(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        timer = threading.Timer(DEADLINE_SECONDS, lambda: self._end(self._verdict))
        timer.daemon = True
        timer.start()

    def _end(self, verdict: Verdict) -> None:
        # In a thread: whatever holds the main one may also hold the log.
        teller = threading.Thread(target=self._tell, args=(verdict,), daemon=True)
        teller.start()
        teller.join(TELL_SECONDS)
        self._host_stays()
        os._exit(ExitCode.FAILED)

    def _tell(self, verdict: Verdict) -> None:
        if self._place.rank in verdict.culprits:
            log.info("threads of rank %d:\n%s", self._place.rank, all_stacks())
        log.error("%s", self.words(verdict))
        sys.stdout.flush()
        sys.stderr.flush()

    def _host_stays(self) -> None:
        if self._place.rank == 0 and self._board is not None and not _agent_holds_store():
            time.sleep(HOST_SECONDS)


@contextlib.contextmanager
def watched(sentinel: Sentinel) -> Iterator[Sentinel]:
    """Training under a sentinel's eye: an exception of this rank leaves with a note that names the culprit, one that
    came from another rank's failure becomes RankFailed.
    """
    sentinel.start()
    try:
        yield sentinel
    except (UserError, TrainingDiverged) as error:
        sentinel.close(error_line(error))
        raise
    except Exception as error:
        verdict = sentinel.failed(error)
        words = sentinel.words(verdict)
        if sentinel.alone:
            if failure.is_out_of_memory(error):
                error.add_note(failure.describe_error(error))
            raise
        if failure.trouble_of(error) is Trouble.OWN:
            error.add_note(words)
            raise
        raise RankFailed(words) from error
    except BaseException:
        sentinel.close()
        raise
    sentinel.close()


def announce(error: Exception) -> None:
    """Tell the other ranks of a failure before this one met them; silent where there is no way to."""
    if hasattr(error, "__notes__"):  # told already
        return
    with contextlib.suppress(Exception):
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        place = Place(rank, f"of {world_size}", socket.gethostname(), machine_name(), os.getpid())
        Board.connect(STAND_SECONDS).settle(failure.verdict_on_error(place, None, error))


def _agent_holds_store() -> bool:
    """Whether the launcher holds the store, as torchrun does; else rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

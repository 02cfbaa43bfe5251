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
from pathlib import Path
from types import FrameType
from typing import TypeVar

import psutil

from data_pipeline.errors import UserError
from pretrain.config.errors import TrainingDiverged
from pretrain.layout import failures
from pretrain.layout.board import Board
from pretrain.layout.failures import Place, RankFailed, Stand, Trouble, Verdict
from pretrain.layout.grid import ParallelLayout

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
        """`limit_seconds`: without any move of the main thread until the run is ended."""
        machine, host = _machine(), socket.gethostname()
        self._place = Place(rank, failures.coordinates(layout, rank), host, machine, os.getpid())
        self._layout, self._limit, self._meeting_seconds = layout, limit_seconds, meeting_seconds
        self._stop_requested = stop_requested
        self._main = threading.main_thread()
        self._still = _StillMeter()
        self._step: int | None = None
        self._board: Board | None = None
        self._own_stand: Stand | None = None
        self._neighbours: dict[int, psutil.Process] = {}
        self._kernel_kills = _kernel_kills()
        self._closed, self._failing, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sentinel", daemon=True)

    @property
    def alone(self) -> bool:
        return self._layout.world_size == 1

    # --- called from the main thread

    def start(self) -> None:
        # Handled in C: it also works where native code does not let Python run.
        faulthandler.register(SHOW_STACKS, all_threads=True)
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

    def close(self, word: str = "") -> None:
        """End in good order, or for a reason that is no failure of this rank, said in `word`."""
        self._closed.set()
        self._wake.set()
        faulthandler.cancel_dump_traceback_later()
        if self._board is not None:
            with contextlib.suppress(RuntimeError):
                self._board.leave(self._place.rank, word)

    def failed(self, error: Exception) -> Verdict:
        """The verdict on a failure that reached the main thread as `error`; the process has to end soon after."""
        faulthandler.cancel_dump_traceback_later()
        own = failures.verdict_on_error(self._place, self._step, error)
        trouble = failures.trouble_of(error)
        self._own_stand = _stand(traceback.extract_tb(error.__traceback__), trouble is not Trouble.OWN, 0.0, self._step)
        self._failing.set()
        self._wake.set()
        self._cut_off_later(own)
        if self.alone:
            return own
        try:
            verdict = self._find_verdict(self._wait_for_board(), trouble, own)
        except RuntimeError:
            return own if trouble is Trouble.OWN else self._lost()
        if verdict.silent:
            self._kill(verdict.culprits)
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
        verdict = failures.judge(
            places,
            stands,
            ended=self._ended(silent),
            silent_seconds=board.seconds_since_beat(silent),
            kernel_kills=_kernel_kills() - self._kernel_kills,
        )
        return board.settle(verdict or otherwise or failures.verdict_on_waiting(places, stands))

    def _all_places(self, board: Board) -> dict[int, Place]:
        world = range(self._layout.world_size)
        unknown = {rank: Place(rank, failures.coordinates(self._layout, rank), "", "", 0) for rank in world}
        return unknown | board.places(world)

    def _ended(self, ranks: Iterable[int]) -> list[int]:
        """Those of `ranks` that ran on this machine and run no more."""
        return [rank for rank in ranks if rank in self._neighbours and _has_ended(self._neighbours[rank])]

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
                verdict = self._lost() if time.monotonic() - lost_at > LOST_SECONDS else None
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
            board = Board.connect(self._meeting_seconds)
            board.enter(self._place)
            self._board = board
        board = self._board
        if self._closed.is_set():
            return None
        board.beat(self._place.rank)
        if board.is_called():
            board.answer(self._place.rank, self._stand_now())
            if (verdict := board.verdict()) is not None:
                return verdict
        self._meet_neighbours(board)
        dead = self._ended(self._neighbours)
        if dead and (verdict := self._verdict_on_dead(board)) is not None:
            return verdict
        if self._is_stuck() and not self._failing.is_set():
            return self._ask_all(board, None)
        return None

    def _is_stuck(self) -> bool:
        # A launcher whose rank died before the ranks met asks the others to stop, who wait for it to come.
        cut_short = self._step is None and self._stop_requested()
        return self._still.seconds >= (min(START_SECONDS, self._limit) if cut_short else self._limit)

    def _verdict_alone(self) -> Verdict:
        stand = self._stand_now()
        cause = f"no progress for {stand.still_seconds:.0f} s (engine.timeout_minutes), standing at {stand.where}"
        return Verdict((0,), cause, stand.stack)

    def _verdict_on_dead(self, board: Board) -> Verdict | None:
        """The verdict where a rank of this machine ended without having said why."""
        time.sleep(BEAT_SECONDS / 4)  # others may be killed in the same moment
        dead = self._ended(self._neighbours)
        left = board.left(dead)
        for rank, word in left.items():
            del self._neighbours[rank]
            if word:
                return board.settle(Verdict((rank,), f"rank {rank} ended: {word}"))
        if (verdict := board.verdict()) is not None or len(left) == len(dead):
            return verdict
        places, kills = board.places(dead), _kernel_kills() - self._kernel_kills
        found = failures.judge(places, {}, ended=[rank for rank in dead if rank not in left], kernel_kills=kills)
        assert found is not None
        return board.settle(found)

    def _meet_neighbours(self, board: Board) -> None:
        if len(self._neighbours) + 1 >= int(os.environ.get("LOCAL_WORLD_SIZE", str(self._layout.world_size))):
            return
        for place in board.neighbours(self._place.machine):
            if place.rank != self._place.rank and place.rank not in self._neighbours:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._neighbours[place.rank] = psutil.Process(place.pid)

    def _stand_now(self) -> Stand:
        if self._own_stand is not None:
            return self._own_stand
        frames = sys._current_frames()
        stacks = {ident: traceback.extract_stack(frame) for ident, frame in frames.items()}
        main = stacks.pop(self._main.ident or 0, traceback.StackSummary())
        stacks.pop(threading.get_ident(), None)
        waits = failures.waits_for_others(main)
        if main and main[-1].name == "_engine_run_backward":  # a GPU's backward pass runs on threads of its own
            waits = waits or any(failures.waits_for_others(stack) for stack in stacks.values())
        return _stand(main, waits, self._still.seconds, self._step)

    def _set_backstop(self) -> None:
        """Native code that never lets Python run also stops this thread: then C code ends the process, with stacks."""
        if not self.alone and not self._closed.is_set():
            faulthandler.dump_traceback_later(self._limit + LOST_SECONDS + DEADLINE_SECONDS, exit=True)

    # --- the end

    def _lost(self) -> Verdict:
        """The verdict where the store does not answer any more."""
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if _agent_holds_store():
            return Verdict((), f"the launcher at {where}, through which the ranks met, is gone")
        place = failures.coordinates(self._layout, 0)
        return Verdict((0,), f"rank 0 ({place}, at {where}) failed first: ended without a word: {failures.KILLED}")

    def _conclude(self, verdict: Verdict) -> None:
        """Give the main thread time to fail by itself; then end the process."""
        if verdict.silent:
            self._kill(verdict.culprits)
        limit = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < limit:
            if self._failing.is_set() or self._closed.is_set():
                return
            time.sleep(0.05)
        self._end(verdict)

    def _cut_off_later(self, verdict: Verdict) -> None:
        timer = threading.Timer(DEADLINE_SECONDS, self._end, [verdict])
        timer.daemon = True
        timer.start()

    def _end(self, verdict: Verdict) -> None:
        # In a thread: whatever holds the main one may also hold the log.
        teller = threading.Thread(target=self._tell, args=(verdict,), daemon=True)
        teller.start()
        teller.join(TELL_SECONDS)
        self._host_stays()
        os._exit(1)

    def _tell(self, verdict: Verdict) -> None:
        if self._place.rank in verdict.culprits:
            log.info("threads of rank %d:\n%s", self._place.rank, _all_stacks())
        log.error("%s", self.words(verdict))
        sys.stdout.flush()
        sys.stderr.flush()

    def _kill(self, ranks: Iterable[int]) -> None:
        """End neighbours that answer no more, after they had a moment to show where they stand."""
        silent = [self._neighbours[rank] for rank in ranks if rank in self._neighbours]
        with contextlib.suppress(psutil.Error):
            for process in silent:
                process.send_signal(SHOW_STACKS)
        if silent:
            time.sleep(BEAT_SECONDS / 2)
        with contextlib.suppress(psutil.Error):
            for process in silent:
                process.kill()  # no other signal reaches a stopped process

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
        sentinel.close(f"{error}")
        raise
    except Exception as error:
        verdict = sentinel.failed(error)
        words = sentinel.words(verdict)
        if sentinel.alone:
            if failures.is_out_of_memory(error):
                error.add_note(failures.describe_error(error))
            raise
        if failures.trouble_of(error) is Trouble.OWN:
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
        place = Place(rank, f"of {world_size}", socket.gethostname(), _machine(), os.getpid())
        Board.connect(STAND_SECONDS).settle(failures.verdict_on_error(place, None, error))


class _StillMeter:
    """How long a thread has not moved. A stop of the whole process does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._seen: tuple[tuple[int, int], ...] = ()
        self._looked = time.monotonic()

    def reset(self) -> None:
        self.seconds = 0.0

    def look(self, thread: threading.Thread) -> None:
        """Sample the thread: one that runs is hardly ever met twice in a row at the same place of the same calls."""
        now = time.monotonic()
        seen = _position(sys._current_frames().get(thread.ident or 0))
        self.seconds = self.seconds + min(now - self._looked, 2 * BEAT_SECONDS) if seen == self._seen else 0.0
        self._seen, self._looked = seen, now


def _position(frame: FrameType | None) -> tuple[tuple[int, int], ...]:
    position = []
    while frame is not None:
        position.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(position)


def _stand(frames: traceback.StackSummary, waits: bool, still_seconds: float, step: int | None) -> Stand:
    shown = "".join(traceback.format_list(frames[-MAX_FRAMES:]))
    return Stand(waits, failures.where(frames), still_seconds, step, shown)


def _all_stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def _agent_holds_store() -> bool:
    """Whether the launcher holds the store, as torchrun does; else rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _machine() -> str:
    """The same text for processes that see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _kernel_kills() -> int:
    """Processes that this machine's kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, value = line.split()
            if name == "oom_kill":
                return int(value)
    return 0


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


MAX_FRAMES = 10
SHOW_STACKS = signal.SIGUSR2

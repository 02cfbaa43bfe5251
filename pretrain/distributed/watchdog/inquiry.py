"""How a watchdog finds the rank that failed first: it asks all ranks for their status, or looks at a dead process."""

import os
import time
from dataclasses import replace

from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.watchdog.diagnose import (
    diagnose,
    report_deadlock,
    report_lost_launcher,
    report_lost_rank_0,
)
from pretrain.distributed.watchdog.failure_store import FailureStore
from pretrain.distributed.watchdog.local_ranks import LocalRanks, kernel_kills
from pretrain.distributed.watchdog.rank_status import RankProcess, RankStatus, coordinates
from pretrain.outcome.failure import FailureReport, Stage

BEAT_SECONDS = 1.0
STATUS_SECONDS = 5.0
"""Time to answer with a status. A rank that does not is unresponsive."""


class Inquiry:
    """The questions that one rank asks. Every report that is returned is settled in the store."""

    def __init__(self, rank: int, layout: ParallelLayout, local_ranks: LocalRanks) -> None:
        self._rank, self._layout, self._local_ranks = rank, layout, local_ranks
        self._kernel_kills = kernel_kills()

    def ask_all(self, store: FailureStore, own: RankStatus, otherwise: FailureReport | None) -> FailureReport:
        """Ask every rank for its status and diagnose; `otherwise` is the report if all ranks answer and wait."""
        world = range(self._layout.world_size)
        store.set_status(self._rank, own)
        if store.ask_statuses() > 1:  # one rank asks, the others wait for what it finds
            report = store.wait_for_report(2 * STATUS_SECONDS)
            if report is not None:
                return report
        limit = time.monotonic() + STATUS_SECONDS
        while time.monotonic() < limit and not store.have_all_answered(len(world)) and store.report() is None:
            time.sleep(0.1)
        statuses, processes = store.statuses(world), self._all_processes(store)
        silent = [rank for rank in world if rank not in statuses]
        report = diagnose(
            processes,
            statuses,
            ended=self._local_ranks.ended(silent),
            silent_seconds=store.seconds_since_beat(silent),
            kernel_kills=kernel_kills() - self._kernel_kills,
        )
        found = report or otherwise or report_deadlock(processes, statuses)
        return store.settle(_at(found, own.stage, own.step))

    def look_at_dead(self, store: FailureStore, stage: Stage, step: int | None) -> FailureReport | None:
        """The report if a rank of this machine ended without saying why."""
        time.sleep(BEAT_SECONDS / 4)  # others may be killed in the same moment
        dead = self._local_ranks.ended()
        left = store.left(dead)
        for rank, report in left.items():
            self._local_ranks.forget(rank)
            if report is not None:
                return store.settle(replace(report, message=f"rank {rank} ended: {report.message}"))
        if (settled := store.report()) is not None or len(left) == len(dead):
            return settled
        kills = kernel_kills() - self._kernel_kills
        ended = [rank for rank in dead if rank not in left]
        found = diagnose(store.processes(dead), {}, ended=ended, kernel_kills=kills)
        assert found is not None
        return store.settle(_at(found, stage, step))

    def report_lost_store(self, stage: Stage, step: int | None, *, joined: bool) -> FailureReport:
        """The report if the store no longer answers; `joined`: this rank was connected to it."""
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if agent_holds_store():
            return report_lost_launcher(where, stage, step)
        return report_lost_rank_0(coordinates(self._layout, 0), where, stage, step, joined=joined)

    def _all_processes(self, store: FailureStore) -> dict[int, RankProcess]:
        world = range(self._layout.world_size)
        unknown = {rank: RankProcess(rank, coordinates(self._layout, rank), "", "", 0) for rank in world}
        return unknown | store.processes(world)


def agent_holds_store() -> bool:
    """Whether the launcher holds the store, as torchrun does; otherwise rank 0 holds it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _at(report: FailureReport, stage: Stage, step: int | None) -> FailureReport:
    """A report on a rank that could not say where it was: the stage and step of the rank that asks."""
    return report if report.stage is not None else replace(report, stage=stage, step=step)
